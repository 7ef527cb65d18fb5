"""Some outputs of a bfloat16 product on the CPU, a choice for each row, without a copy of them."""

from __future__ import annotations

import ctypes

import torch

from river_vllm.kernels.native import build


class NativeChosen:
    """``kernels/native/chosen.cpp``; as ``river_head.chosen_outputs``, summed in float32.

    Raises:
        RuntimeError: it cannot be compiled here (``build.cannot_build``).
    """

    def __init__(self) -> None:
        self._function = build.library().river_chosen
        sizes = [ctypes.c_int64] * 4
        self._function.argtypes = [*[ctypes.c_void_p] * 4, *sizes, ctypes.c_int]
        self._function.restype = None

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
