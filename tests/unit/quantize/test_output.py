"""The folder of quantised weights: whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from river_vllm.quantization import QUANTIZERS
from river_vllm.weights.formats import format_of
from river_vllm.weights.formats.own import own_tensors
from river_vllm.weights.tensors import CheckpointFolder
from server.bench.errors import BenchError
from server.quantize.output import WeightsFolder
from tests.unit.quantization.test_rtn import weights
from tests.unit.weights.test_cache import blocked, same

SETTINGS = {"quantizer": "gptq", "group_size": 32, "whole_zeros": False}
WEIGHT = QUANTIZERS["hqq"](weights(16, 64), 32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return folder


def write(places: list[Path], model: Path, tokens: int = 1) -> Path:
    with WeightsFolder(places) as output:
        save_file(own_tensors("a.b", WEIGHT), output.unfinished / "layer-0000.safetensors")
        output.finish(model, SETTINGS, {"tokens": tokens})
    return output.folder


def test_what_is_written_is_a_checkpoint_that_is_read(model: Path, tmp_path: Path) -> None:
    folder = write([tmp_path / "x" / "out"], model)
    checkpoint = CheckpointFolder(folder)
    found = format_of(checkpoint)
    assert (found.name, found.group_size, found.whole_zeros) == ("gptq", 32, False)
    assert same(found.read(checkpoint, "a.b"), WEIGHT)
    assert checkpoint.config["architectures"] == ["LlamaForCausalLM"]
    assert checkpoint.config["quantization_config"]["made_with"] == {"tokens": 1}
    assert [p.name for p in folder.parent.iterdir()] == ["out"]


def test_an_older_one_is_replaced(model: Path, tmp_path: Path) -> None:
    write([tmp_path / "out"], model)
    folder = write([tmp_path / "out"], model, tokens=2)
    assert CheckpointFolder(folder).config["quantization_config"]["made_with"] == {"tokens": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]


def test_what_fails_leaves_nothing_and_keeps_the_older_one(model: Path, tmp_path: Path) -> None:
    write([tmp_path / "out"], model)
    with pytest.raises(RuntimeError), WeightsFolder([tmp_path / "out"]) as output:
        (output.unfinished / "half").write_text("")
        raise RuntimeError("stopped")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]
    assert (tmp_path / "out" / "config.json").exists()


def test_the_first_place_that_can_be_written_to(model: Path, tmp_path: Path) -> None:
    first = blocked(tmp_path / "file") / "out"
    assert write([first, tmp_path / "second"], model) == tmp_path / "second"
    with pytest.raises(BenchError, match=f"--output: '{first}'"):
        WeightsFolder([first])
    with pytest.raises(BenchError, match="the cache is off"):
        WeightsFolder([])


@pytest.mark.parametrize("other", ["model", "file", "text"])
def test_something_else_is_not_overwritten(other: str, model: Path, tmp_path: Path) -> None:
    place = {"model": model, "file": tmp_path / "f", "text": tmp_path / "t"}[other]
    if other == "file":
        place.write_text("mine")
    elif other == "text":
        place.mkdir()
        (place / "notes.txt").write_text("mine")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(BenchError, match="exists and holds something else"):
        WeightsFolder([place])
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
