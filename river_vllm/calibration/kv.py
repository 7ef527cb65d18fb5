"""K and V of teacher-forced rows against the backbone's, read from the paged blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from river_vllm.compat import current_platform, get_forward_context
from river_vllm.errors import RiverError

Token = tuple[int, int]
"""Number of the text and position."""


class KvRecord:
    """Keeps the backbone's K and V in bf16 until another pass is compared with them.

    Args:
        worker: vLLM's worker.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._kept: dict[Token, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(self, tokens: list[Token], rows: torch.Tensor) -> None:
        """Remember K and V of the step's ``rows``; call inside its forward pass."""
        keys, values = self._read(rows)
        for index, token in enumerate(tokens):
            self._kept[token] = (keys[:, index].bfloat16(), values[:, index].bfloat16())

    def similarity(
        self, tokens: list[Token], rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine over all heads with what was kept, float32 ``[tokens, layers]`` for K and V."""
        found = []
        for half, now in enumerate(self._read(rows)):
            kept = torch.stack([self._kept[token][half] for token in tokens]).float()
            found.append(cosine_similarity(kept.flatten(2), now.transpose(0, 1).flatten(2), dim=-1))
        return found[0], found[1]

    def _read(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not current_platform.is_cpu():
            raise RiverError("K/V similarity can be measured on the CPU only")
        from river_vllm.inspection import paged_kv

        slots = next(iter(get_forward_context().slot_mapping.values()))
        return paged_kv.read_slots(self._worker, slots[rows])
