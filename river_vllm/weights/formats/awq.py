"""AWQ in AutoAWQ's ``gemm`` layout."""

from __future__ import annotations

from typing import Any

from river_vllm.quantization.groups import GroupedWeight
from river_vllm.weights.formats.bits import expect, grouped, unpack
from river_vllm.weights.tensors import CheckpointFolder

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""For each nibble, from the lowest, which of eight neighbouring outputs it holds (AutoAWQ's
``awq/utils/packing_utils.py``)."""


class AwqFormat:
    """Transposed, ``[in, out]``, and packed along the outputs, which AutoAWQ interleaves."""

    name = "awq"
    integer_zeros = True

    def __init__(self, config: dict[str, Any]) -> None:
        bits = "bits" if "bits" in config else "w_bit"
        expect(config, **{bits: (4,)})
        expect(
            {"version": "gemm", "zero_point": True, **config},
            version=("gemm", "GEMM"),
            zero_point=(True,),
        )
        self.group_size = int(config.get("group_size", config.get("q_group_size", 128)))

    def read(self, folder: CheckpointFolder, name: str) -> GroupedWeight:
        packed = f"{name}.qweight"
        codes = unpack(folder.get(packed), 1, _ORDER).t()
        zeros = unpack(folder.get(f"{name}.qzeros"), 1, _ORDER).t()
        return grouped(folder, packed, codes, folder.get(f"{name}.scales").t(), zeros)
