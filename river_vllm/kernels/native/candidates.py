"""Some outputs of a bfloat16 product on the CPU, a choice for each row, without a copy of them."""

from __future__ import annotations

import torch

from river_vllm.kernels.native.library import Backend


class NativeCandidates:
    """``candidates`` of ``sums.h``; as ``river_head.some_outputs``, summed in float32."""

    def __init__(self, backend: Backend) -> None:
        self._function = backend.candidates

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        x, chosen = x.contiguous(), chosen.contiguous()
        if weight.stride(1) != 1:
            weight = weight.contiguous()
        y = x.new_empty(chosen.shape)
        self._function(
            x.data_ptr(),
            weight.data_ptr(),
            chosen.data_ptr(),
            y.data_ptr(),
            *chosen.shape,
            x.shape[1],
            weight.stride(0),
            torch.get_num_threads(),
        )
        return y
