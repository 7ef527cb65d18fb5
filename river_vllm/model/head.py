"""The LM head in 4 bit for candidates, exact bf16 logits for the best of them.

On a small model with a large vocabulary the bf16 head reads as many bytes as the whole river. The
4-bit head ranks the vocabulary; the logits of the best ``CANDIDATES`` are computed again from the
bf16 rows, so greedy, top-k and top-p sampling see exact logits for what they can pick. The rest
keeps its 4-bit logits. Steps that need every logit exact take the bf16 head; drafts take the 4-bit
logits as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from river_vllm.compat import UnquantizedEmbeddingMethod
from river_vllm.errors import UnsupportedModelError
from river_vllm.kernels.base import PackedLinear
from river_vllm.model.rounding import Alike, alike
from river_vllm.step.table import Current
from river_vllm.weights.packing import Packer

Outputs = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""As ``some_outputs``."""

COLUMN = 16
"""Logits in a column, of which ``largest`` first looks at the maximum only."""
CANDIDATES = 256
"""Logits of a row that are made exact."""


class RiverHeadMethod(UnquantizedEmbeddingMethod):
    """Replaces the ``quant_method`` of an LM head; the input embedding is untouched.

    The pass under way names the head that makes its logits; ``outputs`` makes those of the
    candidates exact.
    """

    supports_pre_processed_weights = False

    def __init__(self, current: Current, packer: Packer, outputs: Outputs) -> None:
        super().__init__()
        self._current = current
        self._packer = packer
        self._outputs = outputs
        self._packed: PackedLinear | None = None
        self._least_rows = 1

    def alike(self, layer: Any) -> Alike:
        """``model/rounding.py``, of the backbone's head; passes that need not have stock vLLM's
        bits keep to it from now on."""
        product = partial(super().apply, layer)
        width, outputs = layer.embedding_dim, layer.num_embeddings_per_partition
        found = alike(product, width, outputs, layer.weight.dtype)
        self._least_rows = found.least
        return found

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        self._packed = self._packer(layer.weight.detach())
        super().process_weights_after_loading(layer)

    def apply(
        self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``x [rows, hidden] -> [rows, vocabulary of this rank]``."""
        due = self._current.due
        head = due.head
        if head == "backbone" and due.dense is not None:
            return due.dense(x, layer.weight, bias)
        if head == "backbone" or bias is not None or self._packed is None:
            rows = len(x)
            if not due.exact and rows < self._least_rows:
                x = torch.cat([x, x.new_zeros(self._least_rows - rows, x.shape[1])])
            return super().apply(layer, x, bias)[:rows]
        if head == "draft":
            return self._packed.draft(x, None)
        logits = self._packed.apply(x, None)
        best = largest(logits, min(CANDIDATES, logits.shape[1]))
        return logits.scatter_(1, best, self._outputs(x, layer.weight, best))


def some_outputs(x: torch.Tensor, weight: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Some outputs ``[rows, count]`` of ``x [rows, in]`` and ``weight [out, in]``: for each row
    those that ``chosen`` lists, int64 ``[rows, count]``."""
    return torch.bmm(weight[chosen], x.unsqueeze(-1)).squeeze(-1)


def largest(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the ``count`` largest of each row, ``[rows, count]`` of ``[rows, vocabulary]``.

    A row is laid out with ``COLUMN`` logits to a column. The largest lie in the ``count`` columns
    with the largest maxima, and searching these takes a fraction of searching the vocabulary.
    """
    rows, size = logits.shape
    columns = size // COLUMN
    if 2 * count > columns:
        return logits.topk(count, dim=-1).indices
    maxima = logits[:, : columns * COLUMN].view(rows, COLUMN, columns).amax(dim=1)
    best = maxima.topk(count, dim=-1).indices
    steps = torch.arange(COLUMN, device=logits.device) * columns
    inside = (best.unsqueeze(-1) + steps).view(rows, -1)
    rest = torch.arange(columns * COLUMN, size, device=logits.device).expand(rows, -1)
    places = torch.cat([inside, rest], dim=1)
    return places.gather(1, logits.gather(1, places).topk(count, dim=-1).indices)


def lm_head(model: nn.Module) -> nn.Module | None:
    """The LM head, also of the language model inside a multimodal one; None where it has none.

    Some models with tied embeddings have none: their input embedding makes the logits.
    """
    inner = getattr(model, "get_language_model", None)
    head = getattr(model if inner is None else inner(), "lm_head", None)
    return head if isinstance(head, nn.Module) else None


def has_plain_head(model: nn.Module) -> bool:
    """Whether the model has an LM head that can get a 4-bit twin."""
    head: Any = lm_head(model)
    return type(getattr(head, "quant_method", None)) is UnquantizedEmbeddingMethod


def install_river_head(
    model: nn.Module,
    current: Current,
    packers: Callable[[nn.Module], Packer],
    outputs: Outputs = some_outputs,
) -> None:
    """Give the model's LM head a 4-bit twin; ``packers`` gives the packer of a module's weight.

    Raises:
        UnsupportedModelError: the model has no plain LM head.
    """
    head: Any = lm_head(model)
    if not has_plain_head(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no plain LM head: --river-lm-head must be 'backbone'",
            cure="",
        )
    head.quant_method = RiverHeadMethod(current, packers(head), outputs)
