"""The tensors of each layer in a checkpoint's files, whose pages are given back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from river_vllm.errors import RiverError
from river_vllm.model import residency
from river_vllm.model.residency import CheckpointLayers, move_to_huge_pages, release, releasing


def test_only_safetensors_files_are_read_again(tmp_path: Path) -> None:
    with pytest.raises(RiverError, match=r"pytorch_model\.bin"):
        CheckpointLayers([str(tmp_path / "pytorch_model.bin")], 1)


def test_a_layer_may_be_spread_over_files(tmp_path: Path) -> None:
    values = {name: torch.full((2,), float(i)) for i, name in enumerate("abc")}
    save_file({"model.layers.0.a": values["a"], "lm_head": values["c"]}, tmp_path / "1.safetensors")
    save_file({"layers.0.b": values["b"], "layers.10.c": values["c"]}, tmp_path / "2.safetensors")
    files = sorted(map(str, tmp_path.iterdir()))
    with pytest.raises(RiverError, match=r"layers\.1\."):
        CheckpointLayers(files, 2)
    found = dict(CheckpointLayers(files, 1).tensors(0))
    assert {k: v.tolist() for k, v in found.items()} == {
        "model.layers.0.a": [0.0, 0.0],
        "layers.0.b": [1.0, 1.0],
    }


@pytest.mark.parametrize(
    ("language", "others"),
    [
        ("language_model.model.layers", "vision_tower.transformer.layers"),  # Mistral 3
        # As saved since Transformers 4.52.
        ("model.language_model.layers", "model.vision_tower.transformer.layers"),
        ("layers", "vision_encoder.transformer.layers"),  # Mistral's own format
    ],
)
def test_an_image_encoders_layers_are_not_the_models(
    language: str, others: str, tmp_path: Path
) -> None:
    names = [f"{prefix}.{index}.w" for prefix in (language, others) for index in range(2)]
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "a.safetensors")
    files = CheckpointLayers([str(tmp_path / "a.safetensors")], 2)
    assert [list(dict(files.tensors(index))) for index in range(2)] == [
        [f"{language}.0.w"],
        [f"{language}.1.w"],
    ]


MIB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({name: torch.full((4 * MIB,), ord(name), dtype=torch.uint8) for name in "abcd"}, path)
    return path


def resident(path: Path) -> int:
    """Bytes of ``path`` in this process's memory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first:
            ours = line.endswith(path.name)
        elif ours and first == "Rss:":
            total += int(line.split()[1]) * 1024
    return total


def test_read_pages_go_and_come_back(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        tensors = [opened.get_tensor(name) for name in "abcd"]
        sums = [int(t.sum()) for t in tensors]
        assert resident(file) >= 15 * MIB
        release([(t.data_ptr(), t.nbytes) for t in tensors])
        assert resident(file) < MIB
        assert [int(t.sum()) for t in tensors] == sums


def test_a_window_stays_while_loading(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "WINDOW", 4 * MIB)
    most, seen = 0, []
    with safe_open(file, framework="pt") as opened:
        pairs = ((name, opened.get_tensor(name)) for name in "abcd")
        for name, tensor in releasing(pairs):
            seen.append((name, int(tensor[0]), int(tensor.sum())))
            most = max(most, resident(file))
        assert resident(file) < MIB
    assert seen == [(name, ord(name), ord(name) * 4 * MIB) for name in "abcd"]
    assert most < 14 * MIB


def test_what_is_in_memory_moves_to_huge_pages() -> None:
    values = torch.arange(residency.LARGE // 2, dtype=torch.int32)
    before = in_huge_pages()
    move_to_huge_pages()
    assert torch.equal(values, torch.arange(len(values), dtype=torch.int32))
    if in_huge_pages() == before:
        pytest.skip("this system has no huge pages to give")


def in_huge_pages() -> int:
    """KiB of this process in pages of 2 MiB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages:"))
