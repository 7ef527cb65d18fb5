"""GPTQ in AutoGPTQ's and GPTQModel's layout."""

from __future__ import annotations

from typing import Any

from river_vllm.quantization.groups import GroupedWeight
from river_vllm.weights.formats.bits import expect, expect_contiguous_groups, grouped, unpack
from river_vllm.weights.tensors import CheckpointFolder

_OFFSETS = {"gptq": 1, "gptq_v2": 0}
"""By how much a stored zero point is too small, by version of the format."""


class GptqFormat:
    """Transposed, ``[in, out]``; codes are packed along the inputs, zero points along the outputs.

    The first version of the format stores each zero point minus one, and so cannot hold a 0.
    """

    name = "gptq"
    integer_zeros = True

    def __init__(self, config: dict[str, Any]) -> None:
        version = config.get("checkpoint_format") or "gptq"
        expect(
            {**config, "checkpoint_format": version},
            bits=(4,),
            checkpoint_format=list(_OFFSETS),
        )
        self._offset = _OFFSETS[version]
        self.group_size = int(config.get("group_size", -1))

    def read(self, folder: CheckpointFolder, name: str) -> GroupedWeight:
        packed = f"{name}.qweight"
        expect_contiguous_groups(folder, f"{name}.g_idx", self.group_size)
        codes = unpack(folder.get(packed), 0).t()
        zeros = unpack(folder.get(f"{name}.qzeros"), 1).t() + self._offset
        return grouped(folder, packed, codes, folder.get(f"{name}.scales").t(), zeros)
