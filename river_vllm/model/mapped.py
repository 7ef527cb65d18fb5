"""Gives memory that loading leaves behind back to the system."""

from __future__ import annotations

import ctypes
import gc
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

WINDOW = 128 << 20
"""Bytes of a mapped checkpoint that may stay in memory after they were read."""

_MADV_DONTNEED = 4


def releasing(
    weights: Iterable[tuple[str, torch.Tensor]],
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield ``weights``, and give the pages of earlier ones back to the system on the way.

    vLLM's loader maps the file and copies out of the mapping, so each page is in memory twice until
    the file is closed. A page that is given back too early is read again on access.
    """
    ranges: list[tuple[int, int]] = []
    before: list[tuple[int, int]] = []
    for name, tensor in weights:
        if tensor.device.type == "cpu":
            ranges.append((tensor.data_ptr(), tensor.nbytes))
        yield name, tensor
        del tensor
        if sum(size for _, size in ranges) > WINDOW:
            # The projection whose parts came last may still wait for another part.
            release(before + ranges)
            before, ranges = ranges, []
    release(before + ranges)


def release(ranges: Iterable[tuple[int, int]]) -> None:
    """Give back the pages of ``ranges`` (address, bytes) that map a file; others are left alone."""
    files = _file_mappings()
    madvise = ctypes.CDLL(None).madvise
    for address, size in ranges:
        first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and any(low <= first and last <= high for low, high in files):
            madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_DONTNEED)


def trim() -> None:
    """Return freed memory that the allocators of torch and glibc keep."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def _file_mappings() -> list[tuple[int, int]]:
    """Address ranges that map ``.safetensors`` files; a hub's cache names them by hash."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        if line.endswith(".safetensors") or "/blobs/" in line:
            low, high = line.split(maxsplit=1)[0].split("-")
            found.append((int(low, 16), int(high, 16)))
    return found
