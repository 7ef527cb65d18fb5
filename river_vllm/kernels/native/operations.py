"""A back end's operations beside the 4-bit products, on bfloat16 tensors of the CPU."""

from __future__ import annotations

import torch

from river_vllm.criterion import by_torch, transition_similarity
from river_vllm.kernels.native.library import Backend

_BY_TORCH = by_torch(transition_similarity)


class NativeTransition:
    """``transition`` of ``sums.h``; a ``Reading`` of the cosine (``criterion.py``).

    A row's result does not depend on the other rows. States of another type than bfloat16, as some
    models keep their residual stream, are read by torch's operators.
    """

    def __init__(self, backend: Backend) -> None:
        self._function = backend.transition

    def __call__(
        self, before: torch.Tensor | None, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        others = hidden.dtype if residual is None else residual.dtype
        if hidden.dtype != torch.bfloat16 or others != torch.bfloat16:
            return _BY_TORCH(before, hidden, residual)
        hidden = hidden.contiguous()
        residual = None if residual is None else residual.contiguous()
        before = None if before is None else before.contiguous()
        rows, width = hidden.shape
        after = torch.empty(rows, width)
        similarity = None if before is None else torch.empty(rows)
        self._function(
            _address(before),
            hidden.data_ptr(),
            _address(residual),
            after.data_ptr(),
            _address(similarity),
            rows,
            width,
            torch.get_num_threads(),
        )
        return after, similarity


class NativeCandidates:
    """``candidates`` of ``sums.h``: as ``river_head.some_outputs``, summed in float32, and the
    chosen rows of the weight are not copied."""

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


class NativeDense:
    """``dense`` of ``dense.h``: as ``F.linear``, summed in float32. For a few rows at once, where
    torch's own product takes each row by itself."""

    def __init__(self, backend: Backend) -> None:
        self._function = backend.dense

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """``x [..., K]``, ``weight [N, K]``, contiguous ``bias [N]`` → ``[..., N]``."""
        x, weight = x.contiguous(), weight.contiguous()
        outputs, width = weight.shape
        y = x.new_empty(*x.shape[:-1], outputs)
        self._function(
            x.data_ptr(),
            weight.data_ptr(),
            _address(bias),
            y.data_ptr(),
            x.numel() // width,
            outputs,
            width,
            torch.get_num_threads(),
        )
        return y


def _address(values: torch.Tensor | None) -> int | None:
    return None if values is None else values.data_ptr()
