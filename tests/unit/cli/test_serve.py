"""``river-vllm serve`` up to the point where vLLM takes over."""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, model_validator

from river_vllm.errors import RiverError, UnsupportedModelError
from river_vllm.startup import STAGES_FILE, Stage, file_named_by, marks
from server.cli import serve, vllm_cli
from server.cli.serve import (
    AUTH_MIDDLEWARE,
    GROUPS,
    check_plugins,
    configure,
    parse,
    prepare_environment,
    run,
)
from server.telemetry.ending import Ending


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
    monkeypatch.setattr(serve, "check_plugins", lambda: None)
    return values


def test_no_other_plugin_is_kept_out(environment: dict[str, str]) -> None:
    prepare_environment()
    assert "VLLM_PLUGINS" not in environment


@pytest.mark.parametrize(
    ("given", "expected"),
    [("mine", "mine,river"), ("river", "river"), ("", "river"), ("river,mine", "river,mine")],
)
def test_a_list_of_plugins_that_is_given_stays(
    environment: dict[str, str], given: str, expected: str
) -> None:
    environment["VLLM_PLUGINS"] = given
    prepare_environment()
    assert environment["VLLM_PLUGINS"] == expected


def test_variables_that_are_set_stay(environment: dict[str, str]) -> None:
    environment["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "1"
    prepare_environment()
    assert environment["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "1"
    assert environment["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment


def points(monkeypatch: pytest.MonkeyPatch, **groups: list[EntryPoint]) -> None:
    def entry_points(group: str) -> list[EntryPoint]:
        return groups.get(group.rpartition(".")[2], [EntryPoint("river")])

    monkeypatch.setattr(serve, "entry_points", entry_points)


def test_the_installed_package_has_every_entry_point() -> None:
    check_plugins()


def test_a_plugin_that_is_missing_or_broken_is_not_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for group in GROUPS:
        name = group.rpartition(".")[2]
        points(monkeypatch, **{name: [EntryPoint("other")]})
        with pytest.raises(RiverError, match=f"no entry point 'river' in {group}"):
            check_plugins()
        points(monkeypatch, **{name: [EntryPoint("river", ImportError("no torch"))]})
        with pytest.raises(RiverError, match=f"{group} failed to load: no torch"):
            check_plugins()


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder that holds what River reads before vLLM starts."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RIVER_API_KEY", "VLLM_API_KEY", "RIVER_METRICS_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)


def configured(*argv: str) -> argparse.Namespace:
    args = parse(argv)
    configure(args)
    return args


def test_rivers_and_vllms_options_are_parsed_side_by_side(model: str) -> None:
    args = configured(model, "--river-threshold", "0.5", "--max-model-len", "64", "--port", "81")
    assert (args.model, args.model_tag) == (model, None)
    assert (args.max_model_len, args.port, args.host) == (64, 81, "127.0.0.1")
    assert args.hf_overrides == {"architectures": ["RiverLlamaForCausalLM"]}
    assert args.additional_config == {"river": {"threshold": 0.5}}


@pytest.mark.parametrize(
    ("options", "variable", "name"),
    [
        (("--grpc",), None, "--grpc"),
        ((), "VLLM_USE_RUST_FRONTEND", "VLLM_USE_RUST_FRONTEND"),
    ],
)
def test_front_ends_that_are_not_rivers_are_refused(
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    variable: str | None,
    name: str,
) -> None:
    if variable:
        monkeypatch.setenv(variable, "1")
    with pytest.raises(RiverError, match=f"{name} .*no 'river' field"):
        configured(model, *options)


@pytest.mark.parametrize("option", ["--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs"])
def test_tls_files_that_cannot_be_read_are_refused_before_the_model_loads(
    model: str, option: str
) -> None:
    missing = str(Path(model) / "none.pem")
    with pytest.raises(RiverError, match="No such file") as error:
        configured(model, option, missing)
    assert str(error.value).startswith(f"{option} '{missing}': ")
    with pytest.raises(RiverError, match="Is a directory"):
        configured(model, option, model)
    assert configured(model, option, str(Path(model) / "config.json"))


def test_the_host_can_be_chosen(model: str) -> None:
    assert configured(model, "--host", "0.0.0.0").host == "0.0.0.0"


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


def test_keys_and_the_middleware_that_checks_them(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIVER_API_KEY", "secret")
    monkeypatch.setenv("RIVER_METRICS_KEY", "metrics")
    args = configured(model, "--middleware", "mine.Middleware")
    assert (args.api_key, args.metrics_keys) == (["secret"], ["metrics"])
    # vLLM adds them in this order, so the last one is outermost.
    assert args.middleware == ["mine.Middleware", AUTH_MIDDLEWARE]


def test_two_servers_of_a_process_do_not_share_their_middleware(model: str) -> None:
    assert configured(model).middleware == configured(model).middleware == [AUTH_MIDDLEWARE]


def test_what_is_wrong_is_refused_before_anything_starts(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RiverError, match="no model given"):
        configured()
    with pytest.raises(SystemExit):
        configured(model, "--river-threshold", "2")
    assert "--river-threshold: '2': input should be" in capsys.readouterr().err
    (Path(model) / "config.json").write_text(
        json.dumps({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"})
    )
    with pytest.raises(UnsupportedModelError, match="MixtralForCausalLM"):
        configured(model)


class Config(BaseModel):
    """Plays ``VllmConfig``, whose validator runs River's hook."""

    @model_validator(mode="after")
    def check(self) -> Config:
        raise UnsupportedModelError("River cannot be combined with LoRA adapters", cure="")


def started(monkeypatch: pytest.MonkeyPatch, action: Any) -> int:
    class Command:
        validate = staticmethod(lambda args: None)
        cmd = staticmethod(lambda args: action())

    monkeypatch.setattr(vllm_cli, "ServeSubcommand", Command)
    return run(argparse.Namespace())


def fail(error: BaseException, cause: BaseException | None = None) -> Any:
    def action() -> None:
        raise error from cause

    return action


def test_a_server_that_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started(monkeypatch, lambda: None) == 0
    assert started(monkeypatch, fail(KeyboardInterrupt())) == 130


def test_sigterm_ends_it_before_anything_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process of a container has no handler but its own."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(serve, "prepare_environment", lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        serve.serve(["model"])
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("action", [lambda: None, fail(KeyboardInterrupt())], ids=["end", "Ctrl-C"])
def test_a_server_that_has_ended_is_told_no_further(
    monkeypatch: pytest.MonkeyPatch, action: Any
) -> None:
    with file_named_by(STAGES_FILE) as file:
        started(monkeypatch, action)
        assert marks(file)[-1][1] is Stage.STOPPED


def test_a_server_whose_engine_has_failed_does_not_end_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """vLLM's own command ends with status 0 then."""
    monkeypatch.setattr(serve, "ending", Ending())
    assert started(monkeypatch, lambda: serve.ending.begin(failed=False)) == 0
    monkeypatch.setattr(serve, "ending", Ending())
    assert started(monkeypatch, lambda: serve.ending.begin(failed=True)) == 1
    assert "the server has failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "action",
    [
        fail(UnsupportedModelError("River cannot be combined with LoRA adapters", cure="")),
        fail(RuntimeError("engine"), RiverError("River cannot be combined with LoRA adapters")),
        Config,
    ],
    ids=["plain", "cause", "pydantic"],
)
def test_a_refusal_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], action: Any
) -> None:
    assert started(monkeypatch, action) == 1
    expected = "river-vllm: error: River cannot be combined with LoRA adapters\n"
    assert capsys.readouterr().err == expected


def test_another_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        started(monkeypatch, fail(ZeroDivisionError(), KeyError()))
