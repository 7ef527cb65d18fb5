"""GPTQ in AutoGPTQ's and GPTQModel's layout."""

from __future__ import annotations

from typing import Any

from river_vllm.quantization.groups import GroupedWeight
from river_vllm.weights.formats.bits import expect, grouped, in_place_order, unpack
from river_vllm.weights.tensors import CheckpointFolder


class GptqFormat:
    """Transposed, ``[in, out]``; codes along the inputs, zero points along the outputs.

    The first version of the format stores zero points less one, and so cannot hold a zero.
    """

    name = "gptq"
    whole_zeros = True

    def __init__(self, config: dict[str, Any]) -> None:
        version = config.get("checkpoint_format") or "gptq"
        expect(
            {**config, "checkpoint_format": version},
            bits=(4,),
            checkpoint_format=list(_STORED_LESS),
        )
        self._missing = _STORED_LESS[version]
        self.group_size = int(config.get("group_size", -1))

    def read(self, folder: CheckpointFolder, name: str) -> GroupedWeight:
        packed = f"{name}.qweight"
        in_place_order(folder, f"{name}.g_idx", self.group_size)
        codes = unpack(folder.get(packed), 0).t()
        zeros = unpack(folder.get(f"{name}.qzeros"), 1).t() + self._missing
        return grouped(folder, packed, codes, folder.get(f"{name}.scales").t(), zeros)


_STORED_LESS = {"gptq": 1, "gptq_v2": 0}
