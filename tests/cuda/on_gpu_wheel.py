"""River on the Python of vLLM's wheel for GPUs (``gpu_wheel.py``).

``test_next_vllm.py`` runs these tests in a process of their own.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.config import CompilationMode, CUDAGraphMode
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.kernels.linear import MarlinLinearKernel
from vllm.model_executor.kernels.linear.mixed_precision.machete import MacheteLinearKernel
from vllm.platforms import current_platform

import river_vllm
from river_vllm.engine_config import RiverSpeculativeConfig
from river_vllm.kernels import others
from river_vllm.plugin.refusals import GPU_WORKER, SCHEDULER
from tests.cuda import support
from tests.unit.kernels.support import spec_of

CPUS = ("river_vllm.engine.cpu",)


def test_it_is_a_machine_with_a_gpu() -> None:
    assert current_platform.is_cuda()
    assert current_platform.get_device_capability().to_int() == 90


def test_every_module_is_imported() -> None:
    root = Path(river_vllm.__file__).parent
    for file in sorted(root.rglob("*.py")):
        if (name := ".".join(file.relative_to(root.parent).with_suffix("").parts)) not in CPUS:
            importlib.import_module(name)
    for name in ("route", "linear"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"river::{name}", "CUDA")


@pytest.mark.parametrize(
    ("river", "eager", "asynchronous"),
    [
        ({"verify": 4}, False, False),
        ({"threshold": 0.9}, False, True),
        ({"resident_layers": 3}, True, True),
    ],
)
def test_the_configuration(river: Any, eager: bool, asynchronous: bool, tiny_qwen2: Path) -> None:
    """Stock vLLM's compiled forward and its graphs, except where layers are gone."""
    river_vllm.register()
    args = EngineArgs(str(tiny_qwen2), additional_config={"river": river}, max_model_len=512)
    config = args.create_engine_config()
    assert config.parallel_config.worker_cls == GPU_WORKER
    assert config.scheduler_config.scheduler_cls == SCHEDULER
    assert not config.use_v2_model_runner
    assert config.scheduler_config.async_scheduling is asynchronous
    assert isinstance(config.speculative_config, RiverSpeculativeConfig) is ("verify" in river)
    compiled = config.compilation_config
    assert compiled.mode == (CompilationMode.NONE if eager else CompilationMode.VLLM_COMPILE)
    expected = CUDAGraphMode.NONE if eager else CUDAGraphMode.FULL_AND_PIECEWISE
    assert compiled.cudagraph_mode == expected


@pytest.mark.usefixtures("vllm_world")
@pytest.mark.parametrize(
    ("k", "n", "group", "kernel"),
    [(1536, 8960, 128, MacheteLinearKernel), (896, 4864, 32, MarlinLinearKernel)],
)
def test_the_kernel_that_vllm_chooses(k: int, n: int, group: int, kernel: type) -> None:
    scheme, _ = others._empty(spec_of(k, n, group), torch.device("meta"))
    assert type(scheme.kernel) is kernel


def test_what_river_overrides_is_called_as_before() -> None:
    """Each method of River's worker and runner is one of vLLM's, and takes its arguments."""
    from river_vllm.engine.gpu import RiverGPUModelRunner, RiverGPUWorker
    from river_vllm.modes.verified.proposer import RiverProposer

    checked = 0
    for cls in (RiverGPUWorker, RiverGPUModelRunner, RiverProposer):
        ours = [base for base in cls.__mro__ if base.__module__.startswith("river_vllm.")]
        vllms = next(base for base in cls.__mro__ if base.__module__.startswith("vllm."))
        for name in {name for base in ours for name in vars(base)}:
            own = inspect.unwrap(getattr(cls, name, None) or object)
            if not inspect.isfunction(own) or name.lstrip("_").startswith("river_"):
                continue
            replaced = getattr(vllms, name, None)
            if replaced is None or name == "__init__":
                continue
            wanted = list(inspect.signature(replaced).parameters.values())[1:]
            named = {one.name: None for one in wanted if one.kind is not one.VAR_KEYWORD}
            inspect.signature(own).bind(None, **named)
            checked += 1
    assert checked > 12


@pytest.mark.parametrize(
    "stand_in",
    [
        support.gptq_marlin_repack,
        support.marlin_gemm,
        support.machete_prepack_B,
        support.machete_mm,
    ],
)
def test_the_stand_ins_take_what_the_operators_take(stand_in: Any) -> None:
    """The operators of ``test_products.py``, by the schemas of the wheel's library."""
    schema = getattr(torch.ops._C, stand_in.__name__).default._schema
    named = [
        one
        for one in inspect.signature(stand_in).parameters.values()
        if one.kind is not one.VAR_POSITIONAL
    ]
    assert len(named) <= len(schema.arguments)
    for own, theirs in zip(named, schema.arguments, strict=False):
        if own.annotation != "Any":
            kind = str(own.annotation).removesuffix(" | None").removeprefix("torch.")
            assert kind in str(theirs.type), theirs.name
