"""Every import from vLLM that may move between releases; written for vLLM 0.32.

What is used in passing comes through here; names keep vLLM's own spelling. What is subclassed or
would be heavy to import everywhere (workers, runners, schedulers, the registry, the ``serve``
command, the CPU cache's layout) is imported in the one file that stands on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import vllm.envs as vllm_envs
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CompilationMode, SpeculativeConfig, VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size, get_tp_group
from vllm.forward_context import (
    create_forward_context,
    get_forward_context,
    override_forward_context,
)
from vllm.logger import init_logger
from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    LinearBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import (
    CompressedTensorsWNA16,
)
from vllm.model_executor.layers.quantization.utils.quant_utils import (
    pack_quantized_values_into_int32,
)
from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.reload.layerwise import (
    get_layerwise_info,
    initialize_online_processing,
)
from vllm.model_executor.model_loader.reload.meta import restore_layer_on_meta, to_meta_tensor
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.model_executor.models.registry import ModelRegistry
from vllm.model_executor.parameter import ModelWeightParameter
from vllm.platforms import current_platform
from vllm.scalar_type import scalar_types
from vllm.transformers_utils.config import get_config
from vllm.utils.torch_utils import direct_register_custom_op
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.prometheus import get_prometheus_registry

__all__ = [
    "MODELS_CONFIG_MAP",
    "Attention",
    "CommonAttentionMetadata",
    "CompilationMode",
    "CompressedTensorsWNA16",
    "EngineDeadError",
    "LinearBase",
    "MergedColumnParallelLinear",
    "ModelRegistry",
    "ModelWeightParameter",
    "QKVParallelLinear",
    "RMSNorm",
    "RotaryEmbedding",
    "SpeculativeConfig",
    "StatLoggerBase",
    "UnquantizedEmbeddingMethod",
    "UnquantizedLinearMethod",
    "VerifyAndUpdateConfig",
    "VllmConfig",
    "checkpoint_architecture",
    "checkpoint_files",
    "create_forward_context",
    "current_platform",
    "default_weight_loader",
    "direct_register_custom_op",
    "get_forward_context",
    "get_prometheus_registry",
    "get_tensor_model_parallel_world_size",
    "get_tp_group",
    "has_cpu_int4_product",
    "hold_on_meta",
    "init_logger",
    "override_forward_context",
    "pack_int4_into_int32",
    "restore_on_meta",
    "rounds_activations",
    "skipping_compiled",
    "support_torch_compile",
    "vllm_envs",
]


def pack_int4_into_int32(codes: torch.Tensor, dim: int) -> torch.Tensor:
    """Eight codes 0…15 per int32 along ``dim``, low bits first (vLLM's checkpoint layout)."""
    return pack_quantized_values_into_int32(codes, scalar_types.uint4, packed_dim=dim)


@contextmanager
def skipping_compiled(skip: bool) -> Iterator[None]:
    """Whether the model runs as it is written (a switch of ``compilation/decorators.py``)."""
    context = get_forward_context()
    before, context.skip_compiled = context.skip_compiled, skip
    try:
        yield
    finally:
        context.skip_compiled = before


def has_cpu_int4_product() -> bool:
    """Whether the kernel library that vLLM has loaded for this CPU holds its 4-bit product.

    The one for AVX2 does not (vLLM issue 55613), and vLLM's choice of a kernel does not ask.
    """
    return hasattr(torch.ops._C, "cpu_gemm_wna16")


def rounds_activations(scheme: CompressedTensorsWNA16, dtype: torch.dtype) -> bool:
    """Whether the scheme's kernel will take activations of ``dtype`` rounded to 8 bits.

    The rule of ``kernels/linear/mixed_precision/cpu.py``, which applies it while it repacks.
    """
    return (
        isinstance(scheme.kernel, CPUWNA16LinearKernel)
        and bool(vllm_envs.VLLM_CPU_INT4_W4A8)
        and dtype == torch.bfloat16
        and torch.cpu._is_amx_tile_supported()
    )


def checkpoint_architecture(model: str, options: Mapping[str, Any]) -> str:
    """The architecture that a checkpoint names in its ``config.json``.

    Args:
        model: a Hugging Face id or a folder.
        options: vLLM engine arguments that say how to read it (``revision`` and the like).
    """
    config = get_config(
        model,
        trust_remote_code=bool(options.get("trust_remote_code")),
        revision=options.get("revision"),
        code_revision=options.get("code_revision"),
        config_format=options.get("config_format") or "auto",
    )
    architectures = getattr(config, "architectures", None) or ["(none)"]
    return str(architectures[0])


def hold_on_meta(layer: torch.nn.Module) -> None:
    """Give ``layer.weight`` no memory until its parts are loaded; it is processed right then."""
    weight = to_meta_tensor(layer.weight)
    del layer.weight
    layer.register_parameter("weight", weight)
    initialize_online_processing(layer)


def restore_on_meta(layer: torch.nn.Module) -> None:
    """``hold_on_meta`` for a layer whose weight was loaded before and has been dropped since."""
    info = get_layerwise_info(layer)
    restore_layer_on_meta(layer, info)
    initialize_online_processing(layer)


def checkpoint_files(vllm_config: VllmConfig) -> list[str]:
    """The files from which vLLM loads the model's weights.

    Raises:
        TypeError: its loader does not read files.
    """
    loader = get_model_loader(vllm_config.load_config)
    if not isinstance(loader, DefaultModelLoader):
        raise TypeError(f"{type(loader).__name__} does not read checkpoint files")
    model = vllm_config.model_config
    _, files, _, _ = loader._prepare_weights(model.model, None, model.revision, False, None)
    return list(files)
