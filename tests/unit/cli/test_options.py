"""River's options of ``serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from river_vllm import calibrate
from river_vllm.config import RiverConfig, load_config_file, parse_config
from river_vllm.errors import REMOVED, RiverError
from river_vllm.weights.fingerprint import fingerprint
from server.cli.arguments import REMOVED_OPTIONS, OneLineParser
from server.cli.options import river_config
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


GIVEN = {
    **{"threshold": -0.5, "min_layers": 3, "scope": "batch", "prefill": "sequence"},
    **{"quantizer": "rtn", "group_size": 64, "kernel": "auto", "activations": "int8"},
    **{"max_rows": 6, "lm_head": "river", "cache_dir": "/some/where", "weights": "/else/where"},
    **{"resident_layers": 4, "deep": "fetch"},
}


@pytest.mark.parametrize("given", [GIVEN, {"verify": 4, "draft": "fixed"}])
def test_every_setting_has_its_option(given: dict[str, Any]) -> None:
    words = [(f"--river-{name.replace('_', '-')}", str(value)) for name, value in given.items()]
    assert river_config(parse(*sum(words, ()))) == RiverConfig(**given)
    assert set(GIVEN) == set(RiverConfig.model_fields) - {"calibration", "verify", "draft"}


def test_the_command_line_goes_over_the_file_even_with_a_default(file: str) -> None:
    default = RiverConfig().threshold
    config = river_config(parse("--river-config", file, "--river-threshold", str(default)))
    assert (config.threshold, config.min_layers) == (default, 4)
    config = river_config(parse("--river-config", file, "--river-verify", "4"))
    assert (config.drafts, config.threshold) == (4, 0.5)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--river-verify", "4", "--river-resident-layers", "2"), "verify = 4"),
        *((("--river-stall-seconds", n), f"{float(n)}") for n in ("0", "-3", "nan")),
    ],
)
def test_what_cannot_be_served_is_named(argv: tuple[str, ...], named: str) -> None:
    with pytest.raises(RiverError, match=named):
        river_config(parse(*argv))


def test_auto_takes_the_file_that_is_shipped_for_the_checkpoint(tmp_path, monkeypatch) -> None:
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
    monkeypatch.setattr(calibrate, "shipped", lambda: {"m": file})
    config = river_config(args)
    assert config.calibration is not None
    assert (config.threshold, config.min_layers) == (0.7, 2)


def test_what_is_shipped_is_valid_and_named_after_its_model() -> None:
    for name, file in calibrate.shipped().items():
        config = parse_config(load_config_file(file), file.name)
        assert config.calibration is not None
        assert config.calibration.model.name == name
        assert config.calibration.achieved.p_value <= config.calibration.target.delta


def test_what_was_removed_is_answered_with_what_to_use(capsys, monkeypatch) -> None:
    monkeypatch.setitem(REMOVED, "gone", "use 'here'")
    with pytest.raises(RiverError, match=r"file: .gone. .*use .here."):
        parse_config({"gone": 3}, "file")
    record = calibrated()
    record["calibration"]["settings"]["gone"] = 1
    with pytest.raises(RiverError, match=r"gone .*use .here."):
        parse_config(record, "file")
    monkeypatch.setitem(REMOVED_OPTIONS, "--river-gone", "use --here")
    for words in (["--river-gone", "3"], ["--river-gone=3"]):
        with pytest.raises(SystemExit):
            OneLineParser(prog="x").parse_args(words)
        (line,) = capsys.readouterr().err.splitlines()
        assert "--river-gone" in line and "use --here" in line
