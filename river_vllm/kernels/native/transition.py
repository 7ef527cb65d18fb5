"""The state transition similarity as one native call, for bfloat16 on the CPU."""

from __future__ import annotations

import ctypes

import torch

from river_vllm.kernels.native import build


class NativeTransition:
    """``kernels/native/transition.cpp``; a ``Reading`` of the cosine (``router/signal.py``).

    A row gets the same bits whatever is beside it.

    Raises:
        RuntimeError: it cannot be compiled here (``build.cannot_build``).
    """

    def __init__(self) -> None:
        self._function = build.library().river_transition
        pointers = [ctypes.c_void_p] * 5
        self._function.argtypes = [*pointers, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
        self._function.restype = None

    def __call__(
        self, before: torch.Tensor | None, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden = hidden.contiguous()
        residual = None if residual is None else residual.contiguous()
        rows, width = hidden.shape
        after = torch.empty(rows, width)
        similarity = None if before is None else torch.empty(rows)
        self._function(
            None if before is None else before.data_ptr(),
            hidden.data_ptr(),
            None if residual is None else residual.data_ptr(),
            after.data_ptr(),
            None if similarity is None else similarity.data_ptr(),
            rows,
            width,
            torch.get_num_threads(),
        )
        return after, similarity
