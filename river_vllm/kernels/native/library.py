"""The compiled kernels: the back end for this CPU, or why there is none.

``build.py`` makes the library when River is installed. A faulty library never stops a start: River
runs on a slower kernel, and logs once how to repair it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from river_vllm.compat import init_logger
from river_vllm.errors import RiverError
from river_vllm.kernels.native import build
from river_vllm.kernels.native.kernel import Backend

logger = init_logger("vllm.river")

CAP = "RIVER_CPU_ISA"
ORDER = ("scalar", "neon", "avx2", "avxvnni", "avx512", "vnni", "amx")
"""Names of the back ends, slowest first (``vnni_bf16.cpp`` is ``vnni`` too)."""


class Unavailable(Exception):
    """There are no native kernels; the message says why and what to do."""


@cache
def backends(path: Path = build.LIBRARY) -> list[Backend]:
    """The back ends that this CPU runs, best first.

    Raises:
        Unavailable: the library is missing, or not for this machine or these sources.
    """
    again = f"; build it again: {sys.executable} -m {build.__name__}"
    before = _openmp_runtimes()
    try:
        if not path.exists():
            raise Unavailable(f"'{path}' is not there{again}")
        if not build.is_current(path):
            raise Unavailable(f"'{path}' was made from other sources{again}")
        found = load(path)
    except OSError as error:
        raise Unavailable(f"'{path}' cannot be loaded ({error}){again}") from None
    if added := _openmp_runtimes() - before:
        raise Unavailable(
            f"'{path}' brings an OpenMP runtime of its own ({added.pop()}), since that of torch is "
            "not named libgomp.so.1 here; --river-kernel torch does without the library"
        )
    return found


def load(path: Path) -> list[Backend]:
    """The back ends in a library that this CPU runs; its sources are not compared.

    Raises ``OSError`` if it is no library, or not for this machine.
    """
    library: Any = ctypes.CDLL(str(path))
    library.river_backends.restype = ctypes.POINTER(ctypes.POINTER(Backend))
    found = []
    for entry in library.river_backends():
        if not entry:
            break
        if entry.contents.runs:
            found.append(entry.contents)
    return found


def cap() -> str:
    """The best instruction set that ``RIVER_CPU_ISA`` allows; without it every one is allowed.

    Raises:
        RiverError: the variable names none.
    """
    named = os.environ.get(CAP, "").strip().lower()
    if named and named not in ORDER:
        raise RiverError(f"{CAP} = {named!r}: must be one of {', '.join(ORDER)}")
    return named or ORDER[-1]


@cache
def backend() -> Backend | None:
    """The best back end within ``cap()``; without one None, and a warning in the log.

    Raises:
        RiverError: ``RIVER_CPU_ISA`` names no instruction set.
    """
    most = ORDER.index(cap())
    try:
        best = next(b for b in backends() if ORDER.index(b.name) <= most)
    except Unavailable as error:
        logger.warning("River's own kernels are not used, torch's are slower: %s", error)
        return None
    if best.name == ORDER[0] != cap():
        logger.warning(
            "River's kernels run in plain C++, which is slow: '%s' holds none for this CPU. If the "
            "CPU has AVX2 or 8-bit dot products, build it with a newer g++: %s -m %s",
            *(build.LIBRARY, sys.executable, build.__name__),
        )
    return best


def _openmp_runtimes() -> set[str]:
    """Files of OpenMP runtimes in this process."""
    assert torch  # its runtime is loaded first
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    files = {line.rsplit(maxsplit=1)[-1] for line in lines}
    return {f for f in files if Path(f).name.startswith(("libgomp", "libomp", "libiomp"))}
