"""vLLM's wheel for GPUs on a machine without one: its Python runs, its compiled parts are hollow.

A plugin for pytest, in a process of its own that ``test_next_vllm.py`` starts. NVML reports one
H100. The operators have the schemas that the wheel's libraries declare, and no kernels.
"""

from __future__ import annotations

import os
import re
import sys
import zipfile
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

WHEEL = "RIVER_GPU_WHEEL"
_SCHEMA = re.compile(
    rb"(?<![\w:])([a-z]\w+\([^()\0]*(?:\([^()\0]*\)[^()\0]*)*\) ?-> ?[\w?\[\](), !]+)"
)
_LIBRARIES = {"vllm._C_stable_libtorch": "_C", "vllm._moe_C_stable_libtorch": "_moe_C"}
"""Modules with operators that vLLM looks for while it is imported, and their namespaces."""
_kept: list[Any] = []


def unpack(wheel: Path, folder: Path) -> None:
    """Write the wheel's Python files and its metadata to ``folder``."""
    with zipfile.ZipFile(wheel) as packed:
        wanted = (n for n in packed.namelist() if n.endswith(".py") or ".dist-info/" in n)
        packed.extractall(folder, wanted)


def pytest_load_initial_conftests() -> None:
    with zipfile.ZipFile(os.environ[WHEEL]) as wheel:
        libraries = {
            name.partition(".")[0].replace("/", "."): name
            for name in wheel.namelist()
            if name.endswith(".so")
        }
        for module, namespace in _LIBRARIES.items():
            define(namespace, wheel.read(libraries[module]))
    sys.meta_path.insert(0, _Hollow(libraries))
    import vllm.third_party
    from triton.backends import backends

    # vLLM then takes Triton's functions, and its own model runner V2.
    backends["nvidia"].driver.is_active = staticmethod(lambda: True)

    vllm.third_party.pynvml = sys.modules["vllm.third_party.pynvml"] = nvml()


def pytest_collection_finish() -> None:
    """vLLM's own operator around Marlin takes the CPU's tensors of the tests too."""
    import torch
    from vllm.model_executor.layers.quantization.utils import marlin_utils

    operators = torch.library.Library("vllm", "IMPL")
    _kept.append(operators)
    operators.impl("marlin_gemm", marlin_utils._marlin_gemm, "CPU")


def define(namespace: str, library: bytes) -> None:
    """Define the operators of a library by the schemas in its text.

    An operator that asks whether a GPU supports something says yes.
    """
    import torch

    operators = torch.library.Library(namespace, "FRAGMENT")
    _kept.append(operators)
    for text in {" ".join(found.decode().split()) for found in _SCHEMA.findall(library)}:
        try:
            operators.define(text)
        except RuntimeError:  # no schema, or that of a namespace with types of its own
            continue
        if "support" in text and text.endswith("-> bool"):
            name = text.partition("(")[0]
            operators.impl(name, lambda *_: True, "CompositeExplicitAutograd")


class _Hollow(MetaPathFinder, Loader):
    """Finds compiled modules, in which there is nothing."""

    def __init__(self, names: Any) -> None:
        self._names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in self._names else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        return None


def nvml() -> ModuleType:
    """``pynvml`` on a machine with one H100."""
    made: Any = ModuleType("vllm.third_party.pynvml")
    made.NVMLError = type("NVMLError", (Exception,), {})
    made.nvmlInit = made.nvmlShutdown = lambda: None
    made.nvmlDeviceGetCount = lambda: 1
    made.nvmlDeviceGetHandleByIndex = lambda index: index
    made.nvmlDeviceGetCudaComputeCapability = lambda handle: (9, 0)
    made.nvmlDeviceGetName = lambda handle: "NVIDIA H100 80GB HBM3"
    made.nvmlDeviceGetUUID = lambda handle: "GPU-0"
    memory = SimpleNamespace(total=80 << 30, used=0, free=80 << 30)
    made.nvmlDeviceGetMemoryInfo = lambda handle: memory
    return made  # type: ignore[no-any-return]
