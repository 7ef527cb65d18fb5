"""The row plan: what every dual-precision linear reads to choose its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Literal

import torch


class Path(IntEnum):
    """Where the rows of the current layer are."""

    BACKBONE = 0
    RIVER = 1
    MIXED = 2


class RowPlan:
    """The path of each row in the layer that runs now; one object per model, changed in place.

    Outside a step (warm-up, profiling, dummy runs) every row is on the backbone.
    """

    __slots__ = (
        *("backbone_rows", "draft_head", "opaque", "order", "path", "river_head", "river_rows"),
    )

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.path = Path.BACKBONE
        self.opaque = False
        """Whether the compiler is to see River's operators, and not what is inside them."""
        self.order = torch.zeros(1, device=device)
        """What keeps a compiled forward's operators in order (``layers/ops.py``)."""
        self.draft_head = False
        """Whether the logits only rank a draft's tokens: the 4-bit LM head, as it is."""
        self.river_head = False
        """Whether the step's logits may come from the 4-bit LM head; outlives the forward pass."""
        self.river_rows: torch.Tensor | None = None
        """Row indices on the river, int64 ``[rows]``; set where ``path`` is ``MIXED``."""
        self.backbone_rows: torch.Tensor | None = None
        """All others, where the backbone product need not run over every row (measurements)."""

    @contextmanager
    def with_head(self, flag: Literal["draft_head", "river_head"]) -> Iterator[None]:
        """Logits by the 4-bit LM head, where there is one."""
        setattr(self, flag, True)
        try:
            yield
        finally:
            setattr(self, flag, False)

    def reset(self) -> None:
        self.path = Path.BACKBONE
        self.river_rows = self.backbone_rows = None

    def all_river(self) -> None:
        self.path = Path.RIVER
        self.river_rows = self.backbone_rows = None

    def mixed(self, river_rows: torch.Tensor, backbone_rows: torch.Tensor | None = None) -> None:
        self.path = Path.MIXED
        self.river_rows = river_rows
        self.backbone_rows = backbone_rows
