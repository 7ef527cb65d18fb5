"""The folder of quantised weights: complete or not there."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import save_file

from river_vllm.errors import RiverError
from river_vllm.weights.formats import CheckpointFolder, format_of, own_tensors
from river_vllm.weights.quantizers import QUANTIZERS
from server.quantize import output
from server.quantize.output import WeightsFolder
from tests.unit.weights.support import weights
from tests.unit.weights.test_cache import blocked, same

SETTINGS = {"group_size": 32, "integer_zeros": False}
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


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_a_checkpoint_that_is_read(model: Path, tmp_path: Path) -> None:
    folder = write([tmp_path / "x" / "out"], model)
    checkpoint = CheckpointFolder(folder)
    found = format_of(checkpoint)
    assert (found.name, found.group_size, found.integer_zeros) == ("gptq", 32, False)
    assert same(found.read(checkpoint, "a.b"), WEIGHT)
    assert checkpoint.config["architectures"] == ["LlamaForCausalLM"]
    assert checkpoint.config["quantization_config"]["made_with"] == {"tokens": 1}
    assert [p.name for p in folder.parent.iterdir()] == ["out"]


def test_an_older_one_is_replaced_and_what_fails_keeps_it(model: Path, tmp_path: Path) -> None:
    write([tmp_path / "out"], model)
    folder = write([tmp_path / "out"], model, tokens=2)
    with pytest.raises(RuntimeError), WeightsFolder([tmp_path / "out"]) as output:
        (output.unfinished / "half").write_text("")
        raise RuntimeError("stopped")
    assert CheckpointFolder(folder).config["quantization_config"]["made_with"] == {"tokens": 2}
    assert names(tmp_path) == ["model", "out"]


def test_the_first_place_that_can_be_written_to(model: Path, tmp_path: Path) -> None:
    first = blocked(tmp_path / "file") / "out"
    assert write([first, tmp_path / "second"], model) == tmp_path / "second"
    with pytest.raises(RiverError, match=f"--output: '{first}'"):
        WeightsFolder([first])
    with pytest.raises(RiverError, match="cache"):
        WeightsFolder([])


def test_the_folder_that_one_is_in(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = model.with_name("here")
    place.mkdir()
    monkeypatch.chdir(place)
    assert write([Path()], model) == place


@pytest.mark.parametrize("other", ["model/notes.txt", "file", "folder/notes.txt"])
def test_something_else_is_not_overwritten(other: str, model: Path, tmp_path: Path) -> None:
    file = tmp_path / other
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    place = tmp_path / other.partition("/")[0]
    with pytest.raises(RiverError, match=str(place)):
        WeightsFolder([place])
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


RUN = """
import os, signal, sys, time
from pathlib import Path
from server.cli.process import ended_by_sigterm
from server.quantize.output import WeightsFolder

place, model, moment = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
rename = Path.rename

def killed_before_it_arrives(self, target):
    if self.name.endswith(".unfinished"):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)

Path.rename = killed_before_it_arrives
with ended_by_sigterm(), WeightsFolder([place]) as output:
    (output.unfinished / "layer-0000.safetensors").write_text("half")
    if moment == "replacing":
        settings = {"group_size": 32, "integer_zeros": False}
        output.finish(model, settings, {"tokens": 2})
    print("writing", flush=True)
    time.sleep(120)
"""


@contextmanager
def running(place: Path, model: Path, moment: str) -> Iterator[subprocess.Popen[str]]:
    """The writer of a folder in a process of its own."""
    command = [sys.executable, "-c", RUN, str(place), str(model), moment]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == ("writing\n" if moment == "writing" else "")
        yield process
    finally:
        process.kill()
        process.wait()


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_leaves_no_weights(number: int, model: Path, tmp_path: Path) -> None:
    with running(tmp_path / "out", model, "writing") as process:
        (left,) = hidden(tmp_path)
        process.send_signal(number)
        status = process.wait()
    assert status == 128 + number or number != signal.SIGTERM
    assert left.exists() is (number == signal.SIGKILL)
    with pytest.raises(RiverError, match=r"config\.json"):
        CheckpointFolder(left)
    write([tmp_path / "out"], model)
    assert names(tmp_path) == ["model", "out"]


def test_a_run_that_is_alive_is_left_alone(model: Path, tmp_path: Path) -> None:
    with running(tmp_path / "out", model, "writing"):
        (theirs,) = hidden(tmp_path)
        write([tmp_path / "out"], model)
        assert (theirs / "layer-0000.safetensors").exists()


def test_killed_while_it_replaces_an_older_one(model: Path, tmp_path: Path) -> None:
    """The older one is back for whoever comes next, even if that one fails."""
    write([tmp_path / "out"], model)
    with running(tmp_path / "out", model, "replacing") as process:
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    with pytest.raises(RuntimeError), WeightsFolder([tmp_path / "out"]):
        raise RuntimeError("stopped")
    assert names(tmp_path) == ["model", "out"]
    assert CheckpointFolder(tmp_path / "out").config["quantization_config"]["made_with"] == {
        "tokens": 1
    }


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_folder_that_is_cleared_away_before_it_is_locked_is_let_go(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, taken = output.fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not taken:
            (folder,) = hidden(tmp_path)
            taken.append(folder)
            folder.rmdir()
        flock(descriptor, operation)

    monkeypatch.setattr(output.fcntl, "flock", late)
    before = open_files()
    write([tmp_path / "out"], model)
    assert len(taken) == 1 and open_files() == before
    assert names(tmp_path) == ["model", "out"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_run_goes_on_and_leaves_what_may_be_another_runs(
    number: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network file systems."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr(output.fcntl, "flock", flock)
    others = [f".out.{'0' * 32}.unfinished", ".out.notes", f".other.{'0' * 32}.unfinished"]
    for name in others:
        (tmp_path / name).mkdir()
    before = open_files()
    write([tmp_path / "out"], model)
    assert open_files() == before
    assert names(tmp_path) == sorted([*others, "model", "out"])
