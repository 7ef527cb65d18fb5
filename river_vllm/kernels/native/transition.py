"""The state transition similarity as one native call, for bfloat16 on the CPU."""

from __future__ import annotations

import torch

from river_vllm.criterion import by_torch, transition_similarity
from river_vllm.kernels.native.library import Backend

_BY_TORCH = by_torch(transition_similarity)


class NativeTransition:
    """``transition`` of ``sums.h``; a ``Reading`` of the cosine (``criterion.py``).

    A row gets the same bits whatever is beside it. States of another type than bfloat16, as some
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
