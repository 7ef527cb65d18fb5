"""Settings and features of vLLM that River refuses at start-up, as data."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

import torch

from river_vllm.architectures import in_fp8
from river_vllm.compat import CompilationMode, VllmConfig, current_platform, vllm_envs
from river_vllm.config import Affects, RiverConfig, river_config_of
from river_vllm.engine_config import RiverSpeculativeConfig
from river_vllm.errors import RiverError, UnsupportedModelError
from river_vllm.kernels.native.library import cap as instruction_set_cap
from river_vllm.request import default_settings, unreachable
from river_vllm.weights.cache import weights_folder
from river_vllm.weights.fingerprint import check_model, check_weights, served_checkpoint
from river_vllm.weights.source import LARGEST, weight_source

SCHEDULER = "river_vllm.engine.scheduler.RiverScheduler"
CPU_WORKER = "river_vllm.engine.cpu.RiverCPUWorker"
GPU_WORKER = "river_vllm.engine.gpu.RiverGPUWorker"
RUNNER_V2 = "VLLM_USE_V2_MODEL_RUNNER"
KV_DTYPES = {
    "cpu": ("auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"),
    "gpu": ("auto", "bfloat16"),
}
"""Types of the K/V cache with which exact answers were compared with stock vLLM's."""
QUANTIZATIONS = (None, "compressed-tensors", "fp8", "awq", "auto_awq", "gptq", "auto_gptq")
"""vLLM's names of the forms with which a start goes on; ``attach`` looks at each projection."""


def check_settings(vllm_config: VllmConfig) -> None:
    """Check River's settings against the model.

    Raises:
        RiverError: a setting is wrong, or the weights or the calibration are of another model.
    """
    instruction_set_cap()  # raises for a name that there is none of
    config, model = river_config_of(vllm_config), vllm_config.model_config
    layers = model.get_total_num_hidden_layers()
    resident = config.resident_layers
    if config.min_layers > layers:
        raise RiverError(
            f"'min_layers' = {config.min_layers}: must be between 1 and {layers}, "
            "the number of layers of this model"
        )
    if config.in_4_bit:
        _check_groups(model.hf_config.quantization_config)
    if config.no_exits:
        _check_exits(config)
    folder = weights_folder(config, model.model)
    if config.calibration is not None:
        check_model(config.calibration.model, served_checkpoint(model), model.model)
        check_weights(config.calibration.weights, folder)
    if folder is not None:
        weight_source(config, model, {})  # raises for weights that are of no use
    if resident != "all" and resident > layers:
        raise RiverError(
            f"'resident_layers' = {resident}: must be 'all' or between 1 and {layers}, "
            "the number of layers of this model"
        )
    if reason := unreachable(default_settings(config), config, layers):
        raise RiverError(str(reason))
    formats, given = ("auto", "hf", "safetensors", "mistral"), vllm_config.load_config.load_format
    if config.deep == "fetch" and given not in formats:
        raise RiverError(
            f"'deep' = 'fetch' reads layers from a safetensors checkpoint; --load-format {given} "
            f"has none (allowed: {', '.join(formats)})"
        )


def _check_groups(quantization: Mapping[str, Any]) -> None:
    """Raise for 4-bit groups that no kernel takes."""
    groups = (quantization.get("config_groups") or {}).values()
    for weights in (quantization, *(group.get("weights") or {} for group in groups)):
        size = weights.get("group_size")
        if isinstance(size, int) and size > 0 and size not in (32, 64) and size % LARGEST:
            raise RiverError(
                f"the checkpoint's 'group_size' = {size}: 4-bit weights are served in groups of "
                f"32, 64 or a multiple of {LARGEST} features"
            )


def _check_exits(config: RiverConfig) -> None:
    """Raise for settings that mean nothing where no token can leave."""
    given = config.model_fields_set & RiverConfig.affecting(Affects.EXITS)
    if config.threshold == 1.0:
        given -= {"threshold"}
    if config.in_4_bit:
        given |= config.model_fields_set & {"weights"}
    if given:
        name = min(given)
        raise RiverError(
            f"'{name}' = {getattr(config, name)!r}: {config.no_exits}; leave it out (drafts are "
            "made as always)"
        )


def refuse(vllm_config: VllmConfig) -> None:
    """Look at the features that River does not support.

    Raises:
        UnsupportedModelError: one is asked for; names the first, and the way out.
    """
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    scheduler = vllm_config.scheduler_config
    cpu, dtype = current_platform.is_cpu(), str(model.dtype).removeprefix("torch.")
    returns_experts = vllm_config.aux_output_config.enable_return_routed_experts
    config, adapters = river_config_of(vllm_config), vllm_config.lora_config is not None
    quantized = refused_quantization(model.quantization)
    refused = {
        "pipeline parallelism (use tensor parallelism)": parallel.pipeline_parallel_size > 1,
        "Ray on the CPU, where vLLM cannot use it (leave out --distributed-executor-backend; "
        "--nnodes serves from several machines)": (
            cpu and parallel.distributed_executor_backend == "ray"
        ),
        "micro-batch overlap (leave out --enable-dbo)": parallel.enable_dbo,
        "decode context parallelism (leave out --decode-context-parallel-size)": (
            parallel.decode_context_parallel_size > 1
        ),
        f"{quantized}": quantized is not None,
        "a 4-bit checkpoint on this platform (it serves them on CPUs)": (
            config.in_4_bit and not cpu
        ),
        "an FP8 checkpoint on a CPU without AMX, where vLLM has no product for it (take the bf16 "
        "or INT8 one)": (
            in_fp8(getattr(model.hf_config, "quantization_config", None))
            and cpu
            and not torch.cpu._is_amx_tile_supported()
        ),
        "vLLM's speculative decoding (leave out --speculative-config; --river-verify drafts with "
        "the river)": not isinstance(vllm_config.speculative_config, RiverSpeculativeConfig | None),
        "pooling models (vLLM serves them without a river)": model.runner_type != "generate",
        "LoRA adapters on this platform (it serves them on CPUs; leave out --enable-lora)": (
            adapters and not cpu
        ),
        "LoRA adapters where it fetches layers (leave out --enable-lora, or take --river-deep "
        "exit)": adapters and config.deep == "fetch",
        f"dtype {dtype} on the CPU (use --dtype bfloat16)": cpu and dtype != "bfloat16",
        "--enable-return-routed-experts (leave it out)": returns_experts,
        "vLLM's Rust front end, which knows no 'river' field (leave out VLLM_USE_RUST_FRONTEND)": (
            vllm_envs.VLLM_USE_RUST_FRONTEND
        ),
        f"a custom scheduler ({scheduler.scheduler_cls}; leave out --scheduler-cls)": (
            scheduler.scheduler_cls not in (None, SCHEDULER)
        ),
        f"a custom worker ({parallel.worker_cls}; leave out --worker-cls)": (
            parallel.worker_cls not in ("auto", CPU_WORKER, GPU_WORKER)
        ),
        f"vLLM's model runner V2 (leave out {RUNNER_V2}=1)": (
            vllm_envs.VLLM_USE_V2_MODEL_RUNNER is True
        ),
        "the compilation mode STOCK_TORCH_COMPILE, whose graph leaves every exit out (leave out "
        "-cc.mode)": vllm_config.compilation_config.mode == CompilationMode.STOCK_TORCH_COMPILE,
        "watermarking, which needs vLLM's model runner V2 (leave out --watermark-config)": (
            vllm_config.watermark_config is not None
        ),
        "HiSparse, which needs vLLM's model runner V2 (leave hisparse_config out of "
        "--attention-config)": vllm_config.attention_config.hisparse_config is not None,
        **_drafts_refused(vllm_config),
        **_memory_refused(vllm_config),
    }
    for reason, applies in refused.items():
        if applies:
            raise UnsupportedModelError(f"River cannot be combined with {reason}", cure="")


def refused_quantization(name: str | None) -> str | None:
    """Why River refuses checkpoints that this quantisation method made; None if it takes them.

    ``name`` is vLLM's; for a method that River takes, ``quantization_config`` has the same.
    """
    if name in QUANTIZATIONS:
        return None
    return (
        f"a checkpoint quantised by {name} (River takes bf16, INT8 and FP8 W8A8, and "
        "4 bit of compressed-tensors, AWQ or GPTQ)"
    )


def _drafts_refused(vllm_config: VllmConfig) -> dict[str, bool]:
    """Features that vLLM ignores, or fails at, where it speculates."""
    installed = sorted(found.name for found in entry_points(group="vllm.logits_processors"))
    drafts = river_config_of(vllm_config).drafts > 0
    return {
        "custom logits processors where it drafts (leave out --logits-processors, or draft "
        "nothing: --river-verify 0)": drafts and bool(vllm_config.model_config.logits_processors),
        f"the installed logits processors {', '.join(installed)} where it drafts (draft nothing: "
        "--river-verify 0)": drafts and bool(installed),
        "prompt embeddings where it drafts (leave out --enable-prompt-embeds, or draft nothing: "
        "--river-verify 0)": drafts and vllm_config.model_config.enable_prompt_embeds,
    }


def _memory_refused(vllm_config: VllmConfig) -> dict[str, bool]:
    """Memory settings not tried with River, or that would give exact requests the river's K/V."""
    cache, offload = vllm_config.cache_config, vllm_config.offload_config
    cpu = current_platform.is_cpu()
    dtypes = KV_DTYPES["cpu" if cpu else "gpu"]
    connector = refused_connector(vllm_config.kv_transfer_config)
    lmcache = cache.kv_offloading_size is not None and cache.kv_offloading_backend == "lmcache"
    # vLLM turns the options of its own offloading into a connector after this hook.
    return {
        f"the K/V connector {connector} (leave it out of --kv-transfer-config)": (
            connector is not None
        ),
        "--kv-offloading-backend lmcache (it finds K/V by tokens, whoever wrote it; 'native' "
        "finds it by block hashes)": lmcache,
        f"--kv-cache-dtype {cache.cache_dtype} on this platform (tried: {', '.join(dtypes)})": (
            cache.cache_dtype not in dtypes
        ),
        "offloaded weights on a GPU (leave out --cpu-offload-gb and --offload-group-size; "
        "--river-resident-layers drops backbone layers that tokens hardly reach)": (
            not cpu and (offload.uva.cpu_offload_gb > 0 or offload.prefetch.offload_group_size > 0)
        ),
        "sleep mode (leave out --enable-sleep-mode)": vllm_config.model_config.enable_sleep_mode,
        "VLLM_ENABLE_STARTUP_PLAN, which takes the memory of a start with other river settings "
        "(leave it out)": not cpu and vllm_envs.VLLM_ENABLE_STARTUP_PLAN,
    }


BY_BLOCK_HASHES = ("OffloadingConnector", "SimpleCPUOffloadConnector", "MooncakeStoreConnector")
"""Their keys are made of ``Request.block_hashes`` alone."""

_TOKENS = "it finds K/V by tokens, whoever wrote it"
_HANDS_OVER = "it hands a request's K/V to another engine, which cannot tell who wrote it"
_NO_CACHE = "it is no cache of K/V that a request could use"

REFUSED: dict[str, str] = {
    "ExampleConnector": _TOKENS,
    "LMCacheConnectorV1": _TOKENS,
    "LMCacheMPConnector": _TOKENS,
    "HF3FSKVConnector": _TOKENS,
    "FlexKVConnectorV1": "how it finds K/V is decided outside vLLM",
    "NixlConnector": _HANDS_OVER,
    "NixlPullConnector": _HANDS_OVER,
    "NixlPushConnector": _HANDS_OVER,
    "MooncakeConnector": _HANDS_OVER,
    "MoRIIOConnector": _HANDS_OVER,
    "HiSparseConnector": "it serves sparse attention, which River does not carry",
    "DecodeBenchConnector": _NO_CACHE,
    "ExampleHiddenStatesConnector": _NO_CACHE,
}
"""Connectors of vLLM that River refuses, and why."""

MULTI = "MultiConnector"
OFFLOADING_SPECS = (None, "CPUOffloadingSpec")
"""Allowed stores of ``OffloadingConnector``: the host's memory, for this engine alone."""


def refused_connector(transfer: Any) -> str | None:
    """The first connector of a ``KVTransferConfig`` that River refuses, and why; else None.

    A connector may bring K/V blocks from another store or another engine. ``scheduler.isolate``
    salts the hashes of blocks that the river may have written. A connector that finds blocks by
    ``Request.block_hashes`` alone never gives such a block to an exact request. A connector that
    finds blocks by tokens or by a request's name may, and so may one that hands a request's blocks
    to another engine. Others are refused. Read in vLLM 0.32, ``distributed/kv_transfer``.
    """
    if transfer is None or transfer.kv_connector is None:
        return None
    names = ("kv_connector", "kv_connector_module_path", "kv_connector_extra_config")
    return _refused({name: getattr(transfer, name) for name in names})


def _refused(transfer: Mapping[str, Any]) -> str | None:
    name = str(transfer.get("kv_connector"))
    extra = transfer.get("kv_connector_extra_config") or {}
    if module := transfer.get("kv_connector_module_path"):
        return f"'{name}' of {module}: how it finds K/V is not known here"
    if name == MULTI:
        return next(filter(None, map(_refused, extra.get("connectors", ()))), None)
    if name not in BY_BLOCK_HASHES:
        return f"'{name}': {REFUSED.get(name, 'how it finds K/V is not known here')}"
    spec = extra.get("spec_name")
    if name == "OffloadingConnector" and spec not in OFFLOADING_SPECS:
        return f"'{name}' with spec_name '{spec}': only its store in the host's memory was tried"
    return None
