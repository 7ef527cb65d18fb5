"""An engine for measurements: in this process, not compiled, with many rows a step."""

from __future__ import annotations

import os
from typing import Any

from river_vllm.architectures import in_4_bit
from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError
from river_vllm.plugin.naming import checkpoint_architecture, river_architecture
from server.cli.fields import EngineLimits
from server.cli.process import prepare_environment

ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false"}


def prepare() -> None:
    """Set the environment variables that vLLM reads when it is imported.

    Raises:
        RiverError: vLLM is not installed.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Exit layers, logits and K/V are read in the process that computes them.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    prepare_environment()
    # This overrides ``kv_cache_memory_bytes`` on the CPU (vLLM's platforms/cpu.py).
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)


def options_of(model: str, limits: EngineLimits, **more: Any) -> dict[str, Any]:
    """Arguments of vLLM's ``LLM`` for measurements, ``more`` among them.

    Raises:
        RiverError: the checkpoint's configuration cannot be read, River does not carry its
            architecture, or its weights are in 4 bit already.
    """
    options = {
        "max_model_len": limits.max_model_len,
        "kv_cache_memory_bytes": int(limits.kv_cache_gib * 2**30),
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2048,
        "enforce_eager": True,
        "disable_log_stats": True,
        "seed": 0,
        **({} if limits.revision is None else {"revision": limits.revision}),
        **more,
    }
    architecture, config = checkpoint_architecture(model, options)
    river_architecture(architecture, config)
    if in_4_bit(getattr(config, "quantization_config", None)):
        raise RiverError(
            f"model '{model}': its own weights are in 4 bit, so no request exits, and other 4-bit "
            "weights would not be used (give the checkpoint in bf16 or INT8)"
        )
    return options


def start(model: str, config: RiverConfig, limits: EngineLimits) -> Any:
    """vLLM's ``LLM`` with a river that computes the same as a server with ``config``.

    Where the result is the same, it uses 4-bit products that are fast for many rows.
    """
    from vllm import LLM

    from river_vllm import engine_args
    from river_vllm.compat import current_platform
    from river_vllm.kernels.others import VllmMixedPrecisionKernel

    settings = config.model_dump(exclude_unset=True, exclude={"calibration"})
    if config.activations == "bf16" and config.kernel != VllmMixedPrecisionKernel.name:
        # vLLM's kernel has integer zero points; all others compute as with expanded weights.
        settings["kernel"] = "dequantize"
    settings |= {"scope": "token", "max_rows": "all"}
    # Short texts leave most of a larger block empty; vLLM's default on the CPU is 128.
    blocks = {"block_size": 32} if current_platform.is_cpu() else {}
    options = options_of(model, limits, **blocks)
    return LLM(model, **engine_args(model, RiverConfig.model_validate(settings), **options))
