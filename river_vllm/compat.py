"""Names from vLLM that may move between releases; written for vLLM 0.32 and 0.33.

Names keep vLLM's own spelling. Modules that are slow to import (workers, runners, schedulers, the
``serve`` command) are imported in the files that need them.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import vllm.envs as vllm_envs
from vllm.compilation.decorators import support_torch_compile
from vllm.config import (
    CompilationMode,
    CUDAGraphMode,
    ModelConfig,
    SpeculativeConfig,
    VllmConfig,
    get_current_vllm_config_or_none,
)
from vllm.config.model import try_match_architecture_defaults
from vllm.distributed import get_tensor_model_parallel_world_size, get_tp_group
from vllm.exceptions import GracefulHTTPError, RetryableRequestError
from vllm.forward_context import (
    create_forward_context,
    get_forward_context,
    override_forward_context,
)
from vllm.logger import init_logger
from vllm.model_executor.kernels.linear import _POSSIBLE_KERNELS, register_linear_kernel
from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import (
    MPLinearKernel,
    MPLinearLayerConfig,
)
from vllm.model_executor.layers.attention import Attention, PrefillPrefixLMAttention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.fused_moe.runner.moe_runner_interface import MoERunnerInterface
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import (
    CompressedTensorsW8A8Fp8,
    CompressedTensorsW8A8Int8,
    CompressedTensorsWNA16,
)
from vllm.model_executor.layers.quantization.fp8 import Fp8LinearMethod
from vllm.model_executor.layers.quantization.utils.quant_utils import (
    pack_quantized_values_into_int32,
)
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
from vllm.model_executor.parameter import BasevLLMParameter, ModelWeightParameter
from vllm.platforms import PlatformEnum, current_platform
from vllm.scalar_type import scalar_types
from vllm.transformers_utils.config import get_config
from vllm.utils.torch_utils import direct_register_custom_op
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.prometheus import get_prometheus_registry
from vllm.v1.sample.logits_processor import BUILTIN_LOGITS_PROCESSORS


def make_arg_parser(parser: Any) -> Any:
    """Add the options of vLLM's server to ``parser``; returns it."""
    home = "vllm.entrypoints.common.cli_args"
    if find_spec(home) is None:  # vLLM 0.32
        home = "vllm.entrypoints.launchers.cli_args"
    return import_module(home).make_arg_parser(parser)
