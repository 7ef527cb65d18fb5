"""The tensors of each layer, in a checkpoint's files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from river_vllm.errors import RiverError
from river_vllm.model.layer_files import CheckpointLayers


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
