"""compressed-tensors, ``pack-quantized`` (llm-compressor)."""

from __future__ import annotations

from typing import Any

import torch

from river_vllm.errors import RiverError
from river_vllm.quantization.groups import GroupedWeight
from river_vllm.weights.formats.bits import expect, expect_contiguous_groups, grouped, unpack
from river_vllm.weights.tensors import CheckpointFolder

_MIDDLE = 8.0


class CompressedTensorsFormat:
    """Codes are packed along the inputs, zero points along the outputs; 8 is added to both."""

    name = "compressed-tensors"
    integer_zeros = True

    def __init__(self, config: dict[str, Any]) -> None:
        expect(config, format=("pack-quantized",))
        schemes = list((config.get("config_groups") or {}).values())
        if len(schemes) != 1:
            raise RiverError(f"expected one entry in 'config_groups', found {len(schemes)}")
        weights = schemes[0].get("weights") or {}
        expect(weights, num_bits=(4,), type=("int",), strategy=("group", "channel"))
        self._symmetric = bool(weights.get("symmetric", True))
        self.group_size = -1 if weights["strategy"] == "channel" else int(weights["group_size"])

    def read(self, folder: CheckpointFolder, name: str) -> GroupedWeight:
        packed = f"{name}.weight_packed"
        expect_contiguous_groups(folder, f"{name}.weight_g_idx", self.group_size)
        rows, features = folder.get(f"{name}.weight_shape").tolist()
        # The last word of a row is padded.
        codes = unpack(folder.get(packed), 1)[:, :features]
        scales = folder.get(f"{name}.weight_scale").float()
        if self._symmetric:
            zeros = torch.full_like(scales, _MIDDLE)
        else:
            zeros = unpack(folder.get(f"{name}.weight_zero_point"), 0)[:rows].float()
        return grouped(folder, packed, codes, scales, zeros)
