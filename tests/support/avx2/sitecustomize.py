"""An x86-64 machine with AVX-512 as one that ends at AVX2, for torch and vLLM.

Python imports this by its name at every start of an interpreter, so a whole tree of processes has
it from its environment:

    PYTHONPATH=tests/support/avx2 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 \
        python -m pytest ...

(``make test-avx2`` sets all three.) vLLM loads its library, and torch's compiler picks its vector
width, by what ``torch.cpu`` answers; oneDNN and ATen ask the CPU and have variables of their own.
A compiler's ``-march=native`` is not fooled, nor is code that reads /proc/cpuinfo.

torch keeps what it has compiled under a key without the instruction set, so there is a folder of
its own for it.
"""

import os
import sys
import tempfile
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

TARGET = "torch.cpu"
BEYOND = ("avx512", "vnni", "amx", "avx10")
"""Parts of the names of torch's questions that an AVX2 machine answers with no."""


def _no() -> bool:
    return False


def _forget(module: ModuleType) -> None:
    for name in dir(module):
        asks = name.startswith("_is_") and name.endswith("_supported")
        if asks and any(part in name for part in BEYOND):
            setattr(module, name, _no)


class _Finder:
    """Finds ``torch.cpu`` where it is, and changes it once it has been run."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != TARGET:
            return None
        spec = PathFinder.find_spec(name, path)  # type: ignore[arg-type]
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            _forget(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor-avx2")
sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type]
