"""Where the groups of a projection come from."""

from __future__ import annotations

import inspect
import json
import sys
from typing import Any

import torch
from blake3 import blake3
from torch import nn

from river_vllm.quantization import QUANTIZERS, fitting_group_size, groups
from river_vllm.quantization.groups import GroupedWeight
from river_vllm.startup import Stage, mark
from river_vllm.weights.cache import WeightCache
from river_vllm.weights.packed import FORMAT, digest


class QuantizedAtLoad:
    """Groups made from the weight alone, or found where an earlier start has saved them.

    Args:
        quantizer: one of ``QUANTIZERS``.
        group_size: the largest group wanted.
        cache: where made groups are kept.
    """

    integer_zeros = True
    """Whether groups with integer zero points can be had."""

    def __init__(self, quantizer: str, group_size: int, cache: WeightCache) -> None:
        self.quantizer = quantizer
        """The name of what made the groups."""
        self._quantize = QUANTIZERS[quantizer]
        self._group_size = group_size
        self._cache = cache
        self._made = self._loaded = 0
        # Part of the key: a quantiser whose code has changed makes its weights again.
        modules = (groups, sys.modules[self._quantize.__module__])
        self._code = blake3("".join(map(inspect.getsource, modules)).encode()).hexdigest()

    def group_size(self, layer: nn.Module, in_features: int) -> int:
        """Input features of ``layer`` that share a scale."""
        return fitting_group_size(in_features, self._group_size)

    def groups(
        self, layer: nn.Module, weight: torch.Tensor, group_size: int, integer_zeros: bool
    ) -> GroupedWeight:
        """The groups of ``weight`` ``[N, K]``, this rank's shard of ``layer``."""
        key = self._key(weight, group_size, integer_zeros)
        found = self._cache.get(key)
        if found is not None and _fits(found, weight, group_size):
            self._loaded += 1
            return found
        if not self._made:
            mark(Stage.QUANTIZE)
        made = self._quantize(weight, group_size, integer_zeros=integer_zeros)
        self._made += 1
        self._cache.put(key, made)
        return made

    def report(self) -> dict[str, Any]:
        """How many weights were made, how many read, and from which folder, for ``GET /river``."""
        place = self._cache.found_in if self._loaded else self._cache.writes_to
        return {
            "made": self._made,
            "loaded": self._loaded,
            "folder": None if place is None else str(place),
        }

    def summary(self) -> str:
        """The same in a few words, for the log."""
        place = self.report()["folder"]
        if not self._loaded:
            return "made" if place is None else f"made and saved in '{place}'"
        return f"loaded from '{place}'" + (f" ({self._made} made)" if self._made else "")

    def _key(self, weight: torch.Tensor, group_size: int, integer_zeros: bool) -> str:
        parts = [FORMAT, self._code, group_size, integer_zeros, digest(weight)]
        return blake3(json.dumps(parts).encode()).hexdigest()


def _fits(found: GroupedWeight, weight: torch.Tensor, group_size: int) -> bool:
    """Whether a saved weight is one of this size: a checkpoint's folder may bring others."""
    return found.codes.shape == weight.shape and found.group_size == group_size
