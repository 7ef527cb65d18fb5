"""Makes the 4-bit twin of each projection, and reports the progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TextIO

import torch
from torch import nn
from tqdm import tqdm

from river_vllm.compat import LinearBase, get_tp_group, init_logger
from river_vllm.config import RiverConfig
from river_vllm.kernels.base import LinearSpec, PackedLinear
from river_vllm.kernels.choice import KernelChooser
from river_vllm.kernels.groups import GroupedWeight
from river_vllm.weights.source import weight_source

logger = init_logger("vllm.river")

Packer = Callable[[torch.Tensor], PackedLinear]
"""Makes the 4-bit form of a weight ``[N, K]``."""

EVERY = 5.0
"""Seconds between two lines of a log."""


class Packing:
    """Quantises weights and hands each to the kernel that serves it.

    ``packed_modules`` is the model's ``packed_modules_mapping``.
    """

    def __init__(
        self, config: RiverConfig, model_config: Any, packed_modules: Mapping[str, list[str]]
    ) -> None:
        self._source = weight_source(config, model_config, packed_modules)
        self._chooser = KernelChooser(config.kernel, config.activations, self._source.integer_zeros)
        self._dtype = model_config.dtype
        self._group_sizes: set[int] = set()
        # By layer: weights may be loaded again.
        self._nbytes: dict[nn.Module, int] = {}
        self._seconds = 0.0
        self._given = False
        """Whether the checkpoint's own weights are in 4 bit."""
        self._progress = PackingProgress(logger.info, shown=get_tp_group().is_first_rank)

    def expect(self, layer: nn.Module) -> Packer:
        """The packer for the weight of ``layer``, a projection or an LM head."""
        self._progress.expect()
        return partial(self._pack, layer)

    def take(self, weight: GroupedWeight, spec: LinearSpec) -> PackedLinear:
        """Bring a checkpoint's own 4-bit weight into a kernel's layout."""
        self._given = True
        self._group_sizes.add(spec.group_size)
        self._progress.start()
        packed = self._chooser.pack(spec, lambda _: weight)
        self._progress.step()
        return packed

    def info(self) -> dict[str, Any]:
        """The packed weights and their source, for operators."""
        return {
            "quantizer": "checkpoint" if self._given else self._source.quantizer,
            "activations": self._chooser.activations,
            "group_sizes": sorted(self._group_sizes),
            "kernels": self._chooser.names,
            "zero_points": self._chooser.zero_points,
            "river_bytes": sum(self._nbytes.values()),
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
        if isinstance(layer, LinearBase):  # an LM head's are its own
            self._group_sizes.add(group_size)
        self._nbytes[layer] = packed.nbytes
        self._seconds += time.perf_counter() - start
        if self._progress.step():
            logger.info(
                "River: 4-bit weights (%s, groups of %s, %s kernel), %.1f MiB, %s in %.1f s",
                self._source.quantizer,
                "/".join(map(str, sorted(self._group_sizes))),
                "/".join(self._chooser.names),
                sum(self._nbytes.values()) / 2**20,
                self._source.summary(),
                self._seconds,
            )
        return packed


class PackingProgress:
    """Counts projections as they are packed: a bar on a terminal, else lines for ``log``.

    One rank has its progress ``shown``. The ``clock`` gives monotonic seconds.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        shown: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._shown = shown
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._total = 0
        self._done = 0
        self._bar: tqdm[None] | None = None
        self._started = 0.0
        self._last = 0.0

    def expect(self) -> None:
        """One more projection will be packed."""
        self._total += 1

    def start(self) -> None:
        """A projection is about to be packed."""
        if self._done == self._total:  # all are, and loaded again
            self._done = 0
        if self._done or not self._shown:
            return
        self._started = self._last = self._clock()
        if self._stream.isatty():
            self._bar = tqdm(total=self._total, desc="Packing the river", file=self._stream)

    def step(self) -> bool:
        """A projection is packed; returns whether it was the last."""
        self._done += 1
        last = self._done == self._total
        if self._bar is not None:
            self._bar.update()
            if last:
                self._bar.close()
        elif self._shown and not last and (now := self._clock()) - self._last >= EVERY:
            self._last = now
            left = (now - self._started) / self._done * (self._total - self._done)
            self._log(
                f"River: {self._done} of {self._total} projections in 4 bit "
                f"({100 * self._done // self._total} %), about {left:.0f} s left"
            )
        return last
