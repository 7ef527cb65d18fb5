"""Checks, before an engine is built, whether torch's compiler finds a working C++ compiler."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from contextlib import suppress
from pathlib import Path

from river_vllm.folders import user_cache

TRIAL = """\
#include <Python.h>
#include <omp.h>
#include <vector>
extern "C" int river_trial(const std::vector<float>& x) {
  return x.size() + omp_get_max_threads() + Py_IsInitialized();
}
"""
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-fopenmp", "-shared")
"""Some of the flags that torch's inductor passes (``torch/_inductor/cpp_builder.py``)."""
SECONDS = 60.0


def cannot_compile() -> str | None:
    """Why torch cannot compile for the CPU here; None where it can.

    River's cache folder remembers a compiler that has passed; others are tried at every start.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        compiler = get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):
        named = os.environ.get("CXX")
        return f"CXX={named} is no C++ compiler" if named else "there is no C++ compiler (g++)"
    passed = _passed(compiler)
    # Path.exists raises where a folder on the way may not be entered.
    if passed and os.path.exists(passed):  # noqa: PTH110
        return None
    reason = _trial(compiler)
    if passed and reason is None:
        with suppress(OSError):
            passed.parent.mkdir(parents=True, exist_ok=True)
            passed.touch()
    return reason


def _trial(compiler: str) -> str | None:
    with tempfile.TemporaryDirectory(prefix="river-") as folder:
        source = Path(folder, "trial.cpp")
        source.write_text(TRIAL, encoding="utf-8")
        command = [compiler, *FLAGS, f"-I{sysconfig.get_path('include')}", str(source)]
        try:
            done = subprocess.run(
                [*command, "-o", str(Path(folder, "trial.so"))],
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{compiler} fails: {error}"
    if done.returncode == 0:
        return None
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    words = errors[0].strip() if errors else f"exit status {done.returncode}"
    return f"{compiler} fails: {words}"


def _passed(compiler: str) -> Path | None:
    """The file that records that ``compiler`` works; None if it or Python.h cannot be read."""
    path = Path(shutil.which(compiler) or compiler).resolve()
    with suppress(OSError):
        header = Path(sysconfig.get_path("include"), "Python.h")
        stats = [(p, p.stat().st_size, p.stat().st_mtime_ns) for p in (path, header)]
        parts = (stats, TRIAL, FLAGS)
        key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        return user_cache() / "compilers" / key
    return None
