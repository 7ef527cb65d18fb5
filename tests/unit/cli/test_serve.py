"""``river-vllm serve`` up to the point where vLLM takes over."""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from river_vllm.errors import RiverError
from river_vllm.host import STAGES_FILE, Stage, file_named_by, marks
from server.cli import process, serve
from server.cli.main import main
from server.cli.process import GROUPS, check_plugins, prepare_environment
from server.cli.serve import AUTH_MIDDLEWARE, configure, run
from server.telemetry.progress import Ending
from tests.support.parser import serve_parser


class EntryPoint:
    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name, self.error = name, error

    def load(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment of its own, without the plugin check."""
    values: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", values)
    monkeypatch.setattr(process, "check_plugins", lambda: None)
    return values


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, None), ("mine", "mine,river"), ("", "river"), ("river,mine", "river,mine")],
)
def test_no_other_plugin_is_kept_out_and_a_list_that_is_given_stays(
    environment: dict[str, str], given: str | None, expected: str | None
) -> None:
    environment |= {} if given is None else {"VLLM_PLUGINS": given}
    prepare_environment()
    assert environment.get("VLLM_PLUGINS") == expected


def test_variables_that_are_set_stay(environment: dict[str, str]) -> None:
    environment["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "1"
    prepare_environment()
    assert environment["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "1"
    assert environment["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def points(monkeypatch: pytest.MonkeyPatch, **groups: list[EntryPoint]) -> None:
    def entry_points(group: str) -> list[EntryPoint]:
        return groups.get(group.rpartition(".")[2], [EntryPoint("river")])

    monkeypatch.setattr(process, "entry_points", entry_points)


def test_a_plugin_that_is_missing_or_broken_is_not_passed_over(monkeypatch) -> None:
    check_plugins()
    for group in GROUPS:
        name = group.rpartition(".")[2]
        points(monkeypatch, **{name: [EntryPoint("other")]})
        with pytest.raises(RiverError, match=group):
            check_plugins()
        points(monkeypatch, **{name: [EntryPoint("river", ImportError("no torch"))]})
        with pytest.raises(RiverError, match=f"{group} .*no torch"):
            check_plugins()


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder that holds what River reads before vLLM starts."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def configured(*argv: str) -> argparse.Namespace:
    args = serve_parser().parse_args(argv)
    configure(args)
    return args


@pytest.mark.parametrize("name", ["--grpc", "VLLM_USE_RUST_FRONTEND"])
def test_front_ends_that_are_not_rivers_are_refused(model: str, monkeypatch, name: str) -> None:
    option = name.startswith("--")
    if not option:
        monkeypatch.setenv(name, "1")
    with pytest.raises(RiverError, match=name):
        configured(model, *([name] if option else []))


@pytest.mark.parametrize("option", ["--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs"])
def test_tls_files_that_cannot_be_read_are_refused_before_the_model_loads(model: str, option: str):
    missing = str(Path(model) / "none.pem")
    for path in (missing, model):
        with pytest.raises(RiverError, match=f"{option} '{path}': "):
            configured(model, option, path)
    assert configured(model, option, str(Path(model) / "config.json"))


def test_settings_join_those_that_are_given_in_vllms_own_way(model: str) -> None:
    args = configured(
        *(model, "--river-threshold", "0.5"),
        *("--additional-config", '{"river": {"threshold": 0.1, "min_layers": 3}, "other": 1}'),
        *("--hf-overrides", '{"max_position_embeddings": 64}'),
    )
    assert args.additional_config == {"river": {"threshold": 0.5, "min_layers": 3}, "other": 1}
    assert args.hf_overrides == {
        "max_position_embeddings": 64,
        "architectures": ["RiverLlamaForCausalLM"],
    }


def test_keys_and_the_middleware_that_checks_them(model: str, monkeypatch) -> None:
    monkeypatch.setenv("RIVER_API_KEY", "secret")
    monkeypatch.setenv("RIVER_METRICS_KEY", "metrics")
    for _ in range(2):  # two servers of a process share nothing
        args = configured(model, "--middleware", "mine.Middleware")
        assert (args.api_key, args.metrics_keys) == (["secret"], ["metrics"])
        # vLLM adds them in this order, so the last one is outermost.
        assert args.middleware == ["mine.Middleware", AUTH_MIDDLEWARE]


def started(monkeypatch: pytest.MonkeyPatch, action: Any) -> int:
    class Command:
        validate = staticmethod(lambda args: None)
        cmd = staticmethod(lambda args: action())

    monkeypatch.setattr("vllm.entrypoints.cli.serve.ServeSubcommand", Command)
    return run(argparse.Namespace())


def fail(error: BaseException, cause: BaseException | None = None) -> Any:
    def action() -> None:
        raise error from cause

    return action


@pytest.mark.parametrize(("error", "status"), [(None, 0), (KeyboardInterrupt(), 130)])
def test_a_server_that_has_ended_well_is_told_no_further(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | None, status: int
) -> None:
    with file_named_by(STAGES_FILE) as file:
        assert started(monkeypatch, fail(error) if error else lambda: None) == status
        assert marks(file)[-1][1] is Stage.STOPPED


def test_sigterm_ends_it_before_anything_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process of a container has no handler but its own."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(serve, "prepare_environment", lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        serve.serve(["model"])
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("failed", [False, True])
def test_a_server_whose_engine_has_failed_does_not_end_well(monkeypatch, failed: bool) -> None:
    """vLLM's own command ends with status 0 then."""
    monkeypatch.setattr(serve, "ending", Ending())
    assert started(monkeypatch, lambda: serve.ending.begin(failed=failed)) == failed


def test_another_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        started(monkeypatch, fail(ZeroDivisionError(), KeyError()))


def test_a_vllm_without_a_device_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """vLLM's build for GPUs on a machine without one fails while it lists its options."""
    monkeypatch.setattr("river_vllm.compat.current_platform", SimpleNamespace(device_type=""))
    assert main(["serve", "model"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("river-vllm: error: this vLLM finds no device")
