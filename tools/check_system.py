#!/usr/bin/env python3
"""Check for the system libraries and tools that vLLM's CPU build needs.

No Python package brings them. Without ``libnuma`` vLLM imports, but its kernels are silently
missing. Without a C++ compiler and Python's headers ``torch.compile`` cannot work.

Exit status: 1 without ``libnuma`` on Linux. A missing compiler or header is only a warning:
``river-vllm serve`` then runs the model without compiling it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import sysconfig
from pathlib import Path

LIBNUMA = "libnuma.so.1"
COMPILERS = ("g++", "clang++", "c++")


def loads(library: str) -> bool:
    """Whether the dynamic loader finds ``library``."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def has_compiler() -> bool:
    """Whether torch finds a C++ compiler."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), *COMPILERS))


def has_headers() -> bool:
    """Whether this Python's headers are installed."""
    return Path(sysconfig.get_path("include"), "Python.h").is_file()


def main() -> int:
    """Command line entry."""
    headers = "python{}.{}-dev".format(*sys.version_info)
    missing = [
        *(() if has_compiler() else ("no C++ compiler (Debian, Ubuntu: apt-get install g++)",)),
        *(() if has_headers() else (f"no Python.h (Debian, Ubuntu: apt-get install {headers})",)),
    ]
    for what in missing:
        print(
            f"warning: {what}; until it is there, models run without being compiled, which is "
            "slower",
            file=sys.stderr,
        )
    if sys.platform == "linux" and not loads(LIBNUMA):
        print(
            f"error: vLLM's CPU kernels need {LIBNUMA} (Debian, Ubuntu: apt-get install libnuma1; "
            "Fedora: dnf install numactl-libs)",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
