"""The Hessian of a projection's squared output error, taken while a model reads a text.

For a row ``w`` of the weight and inputs ``x`` the error is the mean of ``((w − ŵ) · x)²``. Its
second derivative by ``ŵ`` is twice the mean of ``x xᵀ``, the same for every row (Frantar et al.,
"GPTQ", 2023, equations 1 and 2). The factor of two changes no code and is left out. Of wide inputs
only diagonal blocks are kept: the memory of a Hessian grows with the square of the width, and
GPTQ's time with its cube.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

WIDEST = 5120
"""Input features of the largest block."""
MULTIPLE = 128
"""Blocks begin where the groups of a weight do."""


def block_widths(features: int) -> list[int]:
    """Widths, about equal, of the diagonal blocks of a Hessian over ``features`` inputs."""
    count = -(-features // WIDEST)
    step = -(-features // (count * MULTIPLE)) * MULTIPLE
    return [min(step, features - start) for start in range(0, features, step)]


def output_power(weight: torch.Tensor, hessian: Sequence[torch.Tensor]) -> float:
    """Mean square of the outputs of ``weight``, or of their error, if it is the error of a weight.

    Args:
        weight: float32 ``[N, K]``.
        hessian: diagonal blocks, float32, over all K inputs.

    Returns:
        The sum over the N outputs.
    """
    columns = weight.split([len(block) for block in hessian], dim=1)
    pairs = zip(columns, hessian, strict=True)
    return sum(float(((part @ block) * part).sum()) for part, block in pairs)


class HessianRecorder:
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
        """Stop recording."""
        for hook in self._hooks:
            hook.remove()

    def take(self, name: str) -> list[torch.Tensor]:
        """A module's Hessian: its diagonal blocks, float32. Once only, to free their memory."""
        return [block / self._tokens[name] for block in self._sums.pop(name)]

    def _add(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].flatten(0, -2).float()
        parts = x.split(block_widths(x.shape[1]), dim=1)
        if name not in self._sums:
            self._sums[name] = [x.new_zeros(part.shape[1], part.shape[1]) for part in parts]
        with _bfloat16_products(args[0].dtype):
            for total, part in zip(self._sums[name], parts, strict=True):
                total += part.t() @ part
        self._tokens[name] += x.shape[0]


@contextmanager
def _bfloat16_products(dtype: torch.dtype) -> Iterator[None]:
    """Let the CPU multiply float32 matrices in bfloat16 units, where the values are bfloat16.

    Sums are float32 in either case, so nothing is lost, and it takes half the time.
    """
    matmul: Any = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    if dtype == torch.bfloat16:
        matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
