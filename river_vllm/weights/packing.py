"""Makes the 4-bit twin of each projection, and keeps count of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from river_vllm.compat import get_tp_group, init_logger
from river_vllm.config import RiverConfig
from river_vllm.kernels.base import LinearSpec, PackedLinear
from river_vllm.kernels.choice import KernelChooser
from river_vllm.weights.choose import weight_source
from river_vllm.weights.progress import PackingProgress

logger = init_logger("vllm.river")

Packer = Callable[[torch.Tensor], PackedLinear]
"""Makes the 4-bit form of a weight ``[N, K]``."""


class Packing:
    """Quantises weights and hands each to the kernel that serves it.

    Args:
        model_config: vLLM's.
        packed_modules: the model's ``packed_modules_mapping``.
    """

    def __init__(
        self, config: RiverConfig, model_config: Any, packed_modules: Mapping[str, list[str]]
    ) -> None:
        self._source = weight_source(config, model_config, packed_modules)
        self._chooser = KernelChooser(config.kernel, config.activations, self._source.integer_zeros)
        self._dtype = model_config.dtype
        self._group_sizes: set[int] = set()
        self._nbytes = 0
        self._seconds = 0.0
        self._progress = PackingProgress(logger.info, shown=get_tp_group().is_first_rank)

    def expect(self, layer: nn.Module) -> Packer:
        """What will pack the weight of ``layer``, a projection or an LM head."""
        self._progress.expect()
        return partial(self._pack, layer)

    def info(self) -> dict[str, Any]:
        """What was made, for operators."""
        return {
            "quantizer": self._source.quantizer,
            "activations": self._chooser.activations,
            "group_sizes": sorted(self._group_sizes),
            "kernels": self._chooser.names,
            "zero_points": self._chooser.zero_points,
            "river_bytes": self._nbytes,
            "weights": {**self._source.report(), "seconds": round(self._seconds, 2)},
        }

    def _pack(self, layer: nn.Module, weight: torch.Tensor) -> PackedLinear:
        start = time.perf_counter()
        self._progress.start()
        out_features, in_features = weight.shape
        group_size = self._source.group_size(layer, in_features)
        spec = LinearSpec(in_features, out_features, group_size, self._dtype, weight.device)
        packed = self._chooser.pack(
            spec, lambda integer: self._source.groups(layer, weight, group_size, integer)
        )
        self._group_sizes.add(group_size)
        self._nbytes += packed.nbytes
        self._seconds += time.perf_counter() - start
        if self._progress.step():
            logger.info(
                "River: 4-bit weights (%s, groups of %s, %s kernel), %.1f MiB, %s in %.1f s",
                self._source.quantizer,
                "/".join(map(str, sorted(self._group_sizes))),
                "/".join(self._chooser.names),
                self._nbytes / 2**20,
                self._source.summary(),
                self._seconds,
            )
        return packed
