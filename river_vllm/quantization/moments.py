"""Second moments of the inputs of projections, taken while a model reads a calibration text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

WIDEST = 5120
"""Features whose moments are taken together."""
MULTIPLE = 128
"""Parts begin where the groups of a weight do."""


def parts_of_width(width: int) -> list[int]:
    """Widths, about equal, of the parts in which ``width`` features are taken."""
    count = -(-width // WIDEST)
    step = -(-width // (count * MULTIPLE)) * MULTIPLE
    return [min(step, width - start) for start in range(0, width, step)]


def product_power(weight: torch.Tensor, moments: Sequence[torch.Tensor]) -> float:
    """Mean square of the product of ``weight`` ``[N, K]`` with inputs of these moments.

    Summed over the outputs; ``weight`` may be the error of one. Moments are diagonal blocks.
    """
    parts = weight.split([len(moment) for moment in moments], dim=1)
    pairs = zip(parts, moments, strict=True)
    return sum(float(((part @ moment) * part).sum()) for part, moment in pairs)


class InputMoments:
    """Sums ``x xᵀ`` over every token that the given modules see, until it is closed.

    Args:
        modules: by name; each takes ``x [tokens, K]`` as its first argument.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._sums: dict[str, list[torch.Tensor]] = {}
        self._tokens: dict[str, int] = dict.fromkeys(modules, 0)
        self._hooks = [
            module.register_forward_pre_hook(partial(self._add, name))
            for name, module in modules.items()
        ]

    @property
    def tokens(self) -> int:
        """Tokens seen by the module that has seen the fewest."""
        return min(self._tokens.values())

    def close(self) -> None:
        """Stop listening."""
        for hook in self._hooks:
            hook.remove()

    def take(self, name: str) -> list[torch.Tensor]:
        """Mean of ``x xᵀ``, its diagonal blocks, float32; given once, so that memory can go."""
        return [part / self._tokens[name] for part in self._sums.pop(name)]

    def _add(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].flatten(0, -2).float()
        parts = x.split(parts_of_width(x.shape[1]), dim=1)
        if name not in self._sums:
            self._sums[name] = [x.new_zeros(part.shape[1], part.shape[1]) for part in parts]
        with _short_products(args[0].dtype):
            for total, part in zip(self._sums[name], parts, strict=True):
                total += part.t() @ part
        self._tokens[name] += x.shape[0]


@contextmanager
def _short_products(dtype: torch.dtype) -> Iterator[None]:
    """Let the CPU multiply float32 in bfloat16 units, where the values are bfloat16 anyway.

    Sums stay float32, so nothing is lost, and the moments take half the time.
    """
    matmul: Any = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    if dtype == torch.bfloat16:
        matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
