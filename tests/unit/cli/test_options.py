"""River's options of ``serve``."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml

from river_vllm.calibrate import shipped
from river_vllm.config import RiverConfig, load_config_file, parse_config
from river_vllm.errors import REMOVED, RiverError
from river_vllm.weights.fingerprint import fingerprint
from server.cli.arguments import OneLineParser
from server.cli.options import add_river_options, river_config
from server.cli.removed import REMOVED_OPTIONS
from tests.unit.calibrate.support import calibrated
from tests.unit.cli.support import parse


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "river.yaml"
    path.write_text("threshold: 0.5\nmin_layers: 4\n")
    return str(path)


def test_without_options_the_engines_own_layers_decide() -> None:
    config = river_config(parse())
    assert config == RiverConfig()
    assert config.model_fields_set == set()


def test_every_setting_has_its_option() -> None:
    config = river_config(
        parse(
            *("--river-threshold", "-0.5", "--river-min-layers", "3", "--river-scope", "batch"),
            *("--river-prefill", "sequence", "--river-quantizer", "rtn"),
            *("--river-group-size", "64", "--river-kernel", "auto"),
            *("--river-activations", "int8", "--river-max-rows", "6"),
            *("--river-lm-head", "river"),
            *("--river-cache-dir", "/some/where", "--river-weights", "/else/where"),
            *("--river-resident-layers", "4", "--river-deep", "fetch"),
        )
    )
    assert config == RiverConfig(
        threshold=-0.5,
        min_layers=3,
        scope="batch",
        prefill="sequence",
        quantizer="rtn",
        group_size=64,
        kernel="auto",
        activations="int8",
        max_rows=6,
        lm_head="river",
        cache_dir="/some/where",
        weights="/else/where",
        resident_layers=4,
        deep="fetch",
    )
    others = {"calibration", "verify", "draft"}
    assert config.model_fields_set == set(RiverConfig.model_fields) - others


def test_drafts() -> None:
    config = river_config(parse("--river-verify", "4", "--river-draft", "fixed"))
    assert config == RiverConfig(verify=4, draft="fixed")


def test_drafts_go_with_the_files_exits(file: str) -> None:
    config = river_config(parse("--river-config", file, "--river-verify", "4"))
    assert (config.drafts, config.min_layers) == (4, 4)


def test_the_command_line_goes_over_the_file(file: str) -> None:
    config = river_config(parse("--river-config", file, "--river-threshold", "0.25"))
    assert (config.threshold, config.min_layers) == (0.25, 4)
    assert config.model_fields_set == {"threshold", "min_layers"}


def test_a_value_equal_to_the_default_still_goes_over_the_file(file: str) -> None:
    default = str(RiverConfig().threshold)
    assert river_config(parse("--river-config", file, "--river-threshold", default)).threshold == (
        RiverConfig().threshold
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ("--river-verify", "4", "--river-resident-layers", "2"),
            "command line: verify = 4 needs every layer in every step",
        ),
        (("--river-stall-seconds", "0"), "--river-stall-seconds = 0.0: "),
        (("--river-stall-seconds", "-3"), "--river-stall-seconds = -3.0: "),
        (("--river-stall-seconds", "nan"), "--river-stall-seconds = nan: "),
    ],
)
def test_what_cannot_be_served_is_named(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(RiverError) as error:
        river_config(parse(*argv))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "argv",
    [
        ("--river-group-size", "48"),
        ("--river-scope", "row"),
        ("--river-min-layers", "x"),
        ("--river-min-layers", "0"),
        ("--river-threshold", "1.5"),
        ("--river-threshold", "nan"),
        ("--river-verify", "17"),
        ("--river-max-rows", "some"),
    ],
)
def test_the_parser_refuses_what_is_not_allowed(argv: tuple[str, ...]) -> None:
    with pytest.raises(argparse.ArgumentError, match=argv[0]):
        parse(*argv)


def test_the_help_of_a_setting_is_its_docstring() -> None:
    parser = argparse.ArgumentParser()
    add_river_options(parser)
    text = " ".join(parser.format_help().split())
    assert "--river-max-rows all|auto|N" in text
    assert "Backbone layers that every token runs. (default: 1)" in text


def test_errors_of_the_file_name_it(tmp_path: Path) -> None:
    path = tmp_path / "river.yaml"
    path.write_text("threshold: 2")
    with pytest.raises(RiverError, match="'threshold' = 2") as error:
        river_config(parse("--river-config", str(path)))
    assert str(error.value).startswith(str(path))
    with pytest.raises(RiverError, match="No such file"):
        river_config(parse("--river-config", str(tmp_path / "none")))


def test_auto_takes_the_file_that_is_shipped_for_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    args = parse("--river-config", "auto", "--river-threshold", "0.7")
    args.model = str(model)
    with pytest.raises(RiverError, match="no calibration is shipped"):
        river_config(args)
    data = calibrated()
    data["calibration"]["model"] = fingerprint(str(model)).model_dump()
    file = tmp_path / "m.yaml"
    file.write_text(yaml.safe_dump(data))
    monkeypatch.setattr(shipped, "shipped", lambda: {"m": file})
    config = river_config(args)
    assert config.calibration is not None
    assert (config.threshold, config.min_layers) == (0.7, 2)


def test_what_is_shipped_is_valid_and_named_after_its_model() -> None:
    for name, file in shipped.shipped().items():
        config = parse_config(load_config_file(file), file.name)
        assert config.calibration is not None
        assert config.calibration.model.name == name
        assert config.calibration.achieved.p_value <= config.calibration.target.delta


def test_what_was_removed_is_answered_with_what_to_use(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REMOVED, "gone", "use 'here'")
    with pytest.raises(RiverError) as error:
        parse_config({"gone": 3}, "file")
    assert str(error.value) == "file: 'gone' was removed; use 'here'"
    record = calibrated()
    record["calibration"]["settings"]["gone"] = 1
    with pytest.raises(RiverError, match=r"calibration\.settings\.gone was removed; use 'here'"):
        parse_config(record, "file")
    monkeypatch.setitem(REMOVED_OPTIONS, "--river-gone", "use --here")
    for words in (["--river-gone", "3"], ["--river-gone=3"]):
        with pytest.raises(SystemExit):
            OneLineParser(prog="x").parse_args(words)
        assert capsys.readouterr().err == "x: error: --river-gone was removed; use --here\n"
