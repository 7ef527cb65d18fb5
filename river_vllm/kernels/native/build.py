"""Compiles the native kernels once per source, compiler and CPU, and loads it.

Plain C++ behind C functions: it takes a few seconds to compile and needs no torch headers. The
library links the OpenMP runtime that torch has loaded, since a second one would bring threads of
its own to the same cores.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
SOURCES = ("int8.cpp", "bf16.cpp", "transition.cpp", "chosen.cpp")
HEADERS = ("weights.h", "amx.h", "bfloat.h")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno", "-march=native")


NEEDS = {
    "river_int8": ("AVX-512 VNNI", lambda: torch.cpu._is_vnni_supported()),
    "river_bf16": ("AVX-512 BF16", lambda: torch.cpu._is_avx512_bf16_supported()),
}
"""The C functions, and the instructions that each one is made of."""


def unsupported(product: str) -> str | None:
    """Why a function of ``NEEDS`` cannot be built or run here; None where it can."""
    instructions, there = NEEDS[product]
    if not torch.cpu._is_avx512_supported() or not there():
        return f"needs a CPU with {instructions}"
    return cannot_build()


def cannot_build() -> str | None:
    """Why nothing native can be built here; None where it can."""
    if _compiler() is None:
        return "needs a C++ compiler (g++ or clang++)"
    if _openmp() is None:
        return "needs torch's OpenMP runtime beside torch"
    return None


@cache
def library() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        RuntimeError: the compiler failed; with its message.
    """
    compiler, openmp = _compiler(), _openmp()
    if compiler is None or openmp is None:
        raise RuntimeError(f"River's native kernels: {cannot_build()}")
    path = _cache_folder() / f"int4-{_key(compiler)}.so"
    if not path.exists():
        _compile(compiler, openmp, path)
    loaded = ctypes.CDLL(str(path))
    for product in NEEDS:
        if hasattr(loaded, product):
            function = getattr(loaded, product)
            function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64, ctypes.c_int]
            function.restype = None
    return loaded


def _compile(compiler: str, openmp: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        shared = Path(folder, "int4.so")
        objects = [str(Path(folder, source).with_suffix(".o")) for source in SOURCES]
        for source, target_object in zip(SOURCES, objects, strict=True):
            _run([compiler, *FLAGS, "-c", str(FOLDER / source), "-o", target_object])
        _run(
            [
                *(compiler, "-shared", *objects, "-o", str(shared)),
                *(str(openmp), f"-Wl,-rpath,{openmp.parent}"),
            ]
        )
        # Another process may be at the same: a rename puts one whole file there.
        shared.replace(target)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    return shutil.which(named) if named else shutil.which("g++") or shutil.which("clang++")


def _openmp() -> Path | None:
    """The OpenMP runtime in torch's own folders."""
    root = Path(torch.__file__).parent
    for folder in (root / "lib", root.parent / "torch.libs"):
        found = sorted(folder.glob("libgomp*.so*"))
        if found:
            return found[0]
    return None


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "river-vllm" / "kernels"


def _key(compiler: str) -> str:
    """Source, flags, compiler and CPU: what the machine code depends on."""
    cpu = next(
        (
            line
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("flags")
        ),
        "",
    )
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    sources = b"".join((FOLDER / name).read_bytes() for name in SOURCES + HEADERS)
    parts = (sources, " ".join(FLAGS).encode(), version, cpu.encode())
    openmp = str(_openmp()).encode()
    return hashlib.sha256(b"\0".join((*parts, openmp))).hexdigest()[:16]
