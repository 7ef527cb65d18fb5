"""``river-vllm models`` and docs/models.md show the same tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from river_vllm.architectures import FAMILIES, REFUSED
from server.cli.main import main
from server.models import DRAFTED, markdown

DOCS = Path(__file__).resolve().parents[3] / "docs" / "models.md"
BEGIN, END = "<!-- river-vllm models --markdown -->\n", "<!-- end -->\n"


def test_the_docs_show_the_tables_of_the_code() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert text.split(BEGIN)[1].split(END)[0] == markdown()


def test_markdown_and_the_terminal_show_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--markdown"]) == 0
    assert capsys.readouterr().out == markdown()
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    names = [*(family.architecture for family in FAMILIES), *DRAFTED]
    assert all(name in shown for name in [*names, *(form.name for form in REFUSED)])


@pytest.mark.parametrize("where", ["standard output", "file"])
def test_json(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "models.json"
    assert main(["models", "--json", *([str(file)] if where == "file" else [])]) == 0
    printed = capsys.readouterr().out
    document = json.loads(file.read_text() if where == "file" else printed)
    assert [row["architecture"] for row in document["exits_and_drafts"]] == [
        family.architecture for family in FAMILIES
    ]
    assert [row["architecture"] for row in document["drafts"]] == list(DRAFTED)
    assert [row["form"] for row in document["refused"]] == [form.name for form in REFUSED]


LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
AWQ = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}
FBGEMM = {"quantization_config": {"quant_method": "fbgemm_fp8"}}


@pytest.mark.parametrize(
    ("config", "status", "shown"),
    [
        (LLAMA, 0, "LlamaForCausalLM: exits and drafts; tests prove both"),
        (LLAMA | AWQ, 0, "LlamaForCausalLM: drafts; the checkpoint's own weights are in 4 bit"),
        (LLAMA | FBGEMM, 1, "LlamaForCausalLM: refused; River cannot be combined with a"),
        (
            {"model_type": "opt", "architectures": ["OPTForCausalLM"]},
            0,
            "OPTForCausalLM: drafts; exits have not been proven for OPTForCausalLM",
        ),
        (
            {"model_type": "bloom", "architectures": ["BloomForCausalLM"]},
            0,
            "; River checks its drafts at the start",
        ),
        (
            {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]},
            1,
            "MixtralForCausalLM: refused; architecture 'MixtralForCausalLM' is not supported: mixt",
        ),
    ],
    ids=["exits", "4-bit", "fbgemm", "drafts", "untried", "refused"],
)
def test_what_becomes_of_a_folder(
    config: dict[str, Any],
    status: int,
    shown: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["models", str(tmp_path)]) == status
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1
    assert shown in out[0]
