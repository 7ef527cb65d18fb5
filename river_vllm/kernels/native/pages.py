"""Packed weights in huge pages.

A step reads every weight once, from end to end. With pages of 4 KiB it misses the TLB every 64
cache lines; with pages of 2 MiB the product is a sixth faster (docs/experiments/speed.md).
"""

from __future__ import annotations

import contextlib
import mmap

import torch

HUGE = 2 << 20
CHUNK = 64 << 20
"""Bytes that are mapped at a time; pages that are never written to take no memory."""
CACHE_LINE = 64


class HugePages:
    """Packs tensors into chunks of memory; a chunk is freed with the last of its tensors."""

    def __init__(self) -> None:
        self._chunk: mmap.mmap | None = None
        self._used = 0
        self._size = 0

    def hold(self, values: torch.Tensor) -> torch.Tensor:
        """A copy of ``values``, contiguous, on a cache line, in huge pages where there are any."""
        if values.numel() == 0:
            return values.contiguous()
        start = -(-self._used // CACHE_LINE) * CACHE_LINE
        if self._chunk is None or start + values.nbytes > self._size:
            self._size = max(CHUNK, -(-values.nbytes // HUGE) * HUGE)
            self._chunk = _mapped(self._size)
            start = 0
        self._used = start + values.nbytes
        held = torch.frombuffer(
            self._chunk, dtype=values.dtype, count=values.numel(), offset=start
        ).view(values.shape)
        return held.copy_(values)


def _mapped(size: int) -> mmap.mmap:
    chunk = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        chunk.madvise(mmap.MADV_HUGEPAGE)
    return chunk
