"""The calibration block of a river config, and which checkpoint it is for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from river_vllm.config import RiverConfig, load_config_file, parse_config, recorded_settings
from river_vllm.errors import RiverError
from river_vllm.guarantee import ModelRecord
from river_vllm.weights.fingerprint import (
    check_model,
    check_weights,
    fingerprint,
    served_checkpoint,
)
from tests.unit.calibrate.support import calibrated


def _checkpoint(folder: Path, weights: bytes = b"w" * 3_000_000) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_file_gives_the_config_and_crosses_processes(tmp_path: Path) -> None:
    file = tmp_path / "river.yaml"
    file.write_text(yaml.safe_dump(calibrated()))
    config = parse_config(load_config_file(file), "file")
    assert config.calibration is not None
    assert parse_config(config.model_dump(exclude_unset=True), "x") == config
    assert parse_config(json.loads(config.model_dump_json()), "x") == config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"quantizer": "rtn"}, "quantizer = 'rtn'"),
        ({"group_size": 64}, "64"),
        ({"resident_layers": 4}, "resident_layers = 4"),
    ],
)
def test_settings_other_than_the_calibrated_ones_are_refused(
    change: dict[str, Any], named: str
) -> None:
    config = parse_config(calibrated(), "file")
    with pytest.raises(RiverError, match="does not go with the calibration") as error:
        config.merged(change, "command line")
    assert named in str(error.value)
    assert config.merged({"resident_layers": 4, "deep": "fetch"}, "command line").deep == "fetch"
    assert config.merged({"threshold": 0.8}, "command line").threshold == 0.8


def test_the_same_files_elsewhere_are_the_same_model_and_other_weights_another(
    tmp_path: Path,
) -> None:
    known = fingerprint(str(_checkpoint(tmp_path / "a")))
    found = fingerprint(str(_checkpoint(tmp_path / "b")))
    check_model(known, found, "b")
    assert known.proves(found)
    other = fingerprint(str(_checkpoint(tmp_path / "c", bytes(range(250)) * 12_000)))
    with pytest.raises(RiverError, match=r"'c' is another .*weights_sha256"):
        check_model(known, other, "c")
    assert not known.proves(other)


COMMITS = ("0" * 40, "1" * 40)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of two commits of x/y, as Hugging Face's cache keeps them."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    folder = tmp_path / "models--x--y"
    for number, commit in enumerate(COMMITS):
        (folder / "snapshots" / commit).mkdir(parents=True)
        config = json.dumps({"model_type": "llama", "number": number})
        (folder / "snapshots" / commit / "config.json").write_text(config)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMITS[1])
    return folder


@pytest.mark.usefixtures("hub")
def test_a_hub_model_is_known_by_its_commit_and_its_configurations_hash() -> None:
    first, second = (fingerprint("x/y", commit) for commit in COMMITS)
    assert [first.revision, second.revision] == list(COMMITS)
    assert first.config_sha256 is not None
    assert first.proves(first)
    for other in (second, first.model_copy(update={"revision": COMMITS[1]})):
        assert not first.proves(other)
        with pytest.raises(RiverError, match="another"):
            check_model(first, other, "x/y")
    # What is served without a revision is the hub's main branch.
    assert fingerprint("x/y") == second


@pytest.mark.usefixtures("hub")
def test_what_an_engine_serves() -> None:
    hf_config = SimpleNamespace(_commit_hash=COMMITS[0])
    served = SimpleNamespace(model="x/y", revision="main", hf_config=hf_config)
    assert served_checkpoint(served) == fingerprint("x/y", COMMITS[0])
    hf_config._commit_hash = None
    assert served_checkpoint(served).revision == COMMITS[1]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["x/z", "no/name/of/a/hub", "/nowhere"])
def test_a_model_whose_files_are_not_here_is_not_known(name: str) -> None:
    found = fingerprint(name, "abc")
    assert found == ModelRecord(name=name, revision="abc")
    assert not found.proves(found)
    check_model(found, fingerprint(name), name)


def test_the_rivers_own_weights_are_those_that_were_calibrated(tmp_path: Path) -> None:
    known = fingerprint(str(_checkpoint(tmp_path / "a")))
    copy = _checkpoint(tmp_path / "b")
    other = _checkpoint(tmp_path / "c", b"o" * 1000)
    check_weights(None, None)
    check_weights(known, copy)
    for calibrated_, folder in ((None, copy), (known, None), (known, other)):
        with pytest.raises(RiverError, match="do not go with the calibration"):
            check_weights(calibrated_, folder)


def test_kernels_count_where_each_rounds_in_its_own_way() -> None:
    engine = {
        "group_sizes": [128],
        "zero_points": "float",
        "dtype": "bfloat16",
        "kv_cache_dtype": "auto",
        "kernels": ["native"],
        "crossover": {"max_rows": None},
    }
    assert "kernels" not in recorded_settings(RiverConfig(), engine)
    assert recorded_settings(RiverConfig(activations="int8"), engine)["kernels"] == ["native"]
