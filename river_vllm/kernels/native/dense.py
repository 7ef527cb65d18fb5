"""A bfloat16 product on the CPU for some rows at once, where torch's own takes each by itself."""

from __future__ import annotations

import torch

from river_vllm.kernels.native.library import Backend


class NativeDense:
    """``dense`` of ``dense.h``: as ``F.linear``, summed in float32."""

    def __init__(self, backend: Backend) -> None:
        self._function = backend.dense

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """``x [..., K]``, ``weight [N, K]``, contiguous ``bias [N]`` → ``[..., N]``, all
        bfloat16."""
        x, weight = x.contiguous(), weight.contiguous()
        outputs, width = weight.shape
        y = x.new_empty(*x.shape[:-1], outputs)
        self._function(
            x.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            y.data_ptr(),
            x.numel() // width,
            outputs,
            width,
            torch.get_num_threads(),
        )
        return y
