"""vLLM's configuration hook for River architectures: sets up the engine, refuses conflicts."""

from __future__ import annotations

import os
from importlib.metadata import entry_points

from river_vllm import patches, speculation
from river_vllm.compat import (
    MODELS_CONFIG_MAP,
    CompilationMode,
    VerifyAndUpdateConfig,
    VllmConfig,
    current_platform,
    init_logger,
    vllm_envs,
)
from river_vllm.compiler import cannot_compile
from river_vllm.config import CHECKPOINT_KEY, CONFIG_KEY, PREFIX, RiverConfig, river_config_of
from river_vllm.errors import RiverError, UnsupportedModelError
from river_vllm.graph_key import RiverAdditionalConfig
from river_vllm.kernels.native.library import cap as instruction_set_cap
from river_vllm.plugin.connectors import refused_connector
from river_vllm.request import default_settings, unreachable
from river_vllm.settings import Affects
from river_vllm.speculation import RiverSpeculativeConfig
from river_vllm.weights.cache import weights_folder
from river_vllm.weights.fingerprint import check_model, check_weights, served_checkpoint
from river_vllm.weights.source import weight_source

logger = init_logger("vllm.river")

SCHEDULER = "river_vllm.engine.scheduler.RiverScheduler"
CPU_WORKER = "river_vllm.engine.cpu.RiverCPUWorker"
GPU_WORKER = "river_vllm.engine.gpu.RiverGPUWorker"
RUNNER_V2 = "VLLM_USE_V2_MODEL_RUNNER"
KV_DTYPES = {
    "cpu": ("auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"),
    "gpu": ("auto", "bfloat16"),
}
"""Types of the K/V cache with which exact answers were compared with stock vLLM's."""


QUANTIZATIONS = (None, "compressed-tensors", "awq", "auto_awq", "gptq", "auto_gptq")


class RiverConfigHook(VerifyAndUpdateConfig):
    """Runs in every process that builds a ``VllmConfig``, first in the one the user started."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Point vLLM at River's worker and scheduler.

        Raises:
            RiverError: a setting is wrong, or the engine mode has no place for a river.
        """
        base = MODELS_CONFIG_MAP.get(
            (vllm_config.model_config.architecture or "").removeprefix(PREFIX)
        )
        if base is not None:
            base.verify_and_update_config(vllm_config)
        _check_config(vllm_config)
        _refuse(vllm_config)
        _choose_runner_v1(vllm_config)
        _install(vllm_config)
        _name_graphs(vllm_config)
        patches.install("front end")
        config = river_config_of(vllm_config)
        if config.drafts:
            speculation.install(vllm_config, config.drafts)


def _check_config(vllm_config: VllmConfig) -> None:
    instruction_set_cap()  # raises for a name that there is none of
    config = river_config_of(vllm_config)
    model = vllm_config.model_config
    layers = model.get_total_num_hidden_layers()
    if config.min_layers > layers:
        raise RiverError(
            f"'min_layers' = {config.min_layers}: must be between 1 and {layers}, "
            "the number of layers of this model"
        )
    if config.in_4_bit:
        _check_4_bit(config)
    folder = weights_folder(config, model.model)
    if config.calibration is not None:
        check_model(config.calibration.model, served_checkpoint(model), model.model)
        check_weights(config.calibration.weights, folder)
    if folder is not None:
        weight_source(config, model, {})  # raises for weights that are of no use
    _check_offloading(config, layers, vllm_config.load_config.load_format)


def _check_4_bit(config: RiverConfig) -> None:
    """Raise for settings that mean nothing where the checkpoint's own weights are in 4 bit."""
    given = config.model_fields_set & (RiverConfig.affecting(Affects.EXITS) | {"weights"})
    if config.threshold == 1.0:
        given -= {"threshold"}
    if given:
        name = min(given)
        raise RiverError(
            f"'{name}' = {getattr(config, name)!r}: the checkpoint's own weights are in 4 bit, so "
            "there is no more precise backbone to leave; leave it out (drafts are made as always)"
        )


def _check_offloading(config: RiverConfig, layers: int, load_format: str) -> None:
    if isinstance(config.resident_layers, int) and config.resident_layers > layers:
        raise RiverError(
            f"'resident_layers' = {config.resident_layers}: must be 'all' or between 1 "
            f"and {layers}, the number of layers of this model"
        )
    if reason := unreachable(default_settings(config), config, layers):
        raise RiverError(str(reason))
    formats = ("auto", "hf", "safetensors", "mistral")
    if config.deep == "fetch" and load_format not in formats:
        raise RiverError(
            f"'deep' = 'fetch' reads layers from a safetensors checkpoint; --load-format "
            f"{load_format} has none (allowed: {', '.join(formats)})"
        )


def _refuse(vllm_config: VllmConfig) -> None:
    """Raise, with one line, for the first feature that River does not support."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    scheduler = vllm_config.scheduler_config
    dtype = str(model.dtype).removeprefix("torch.")
    returns_experts = vllm_config.aux_output_config.enable_return_routed_experts
    refused = {
        "pipeline parallelism (use tensor parallelism)": parallel.pipeline_parallel_size > 1,
        "Ray on the CPU, where vLLM cannot use it (leave out --distributed-executor-backend; "
        "--nnodes serves from several machines)": (
            current_platform.is_cpu() and parallel.distributed_executor_backend == "ray"
        ),
        "micro-batch overlap (leave out --enable-dbo)": parallel.enable_dbo,
        "decode context parallelism (leave out --decode-context-parallel-size)": (
            parallel.decode_context_parallel_size > 1
        ),
        f"a checkpoint quantised by {model.quantization} (River takes bf16, INT8 W8A8 of "
        "compressed-tensors, and 4 bit of compressed-tensors, AWQ or GPTQ)": (
            model.quantization not in QUANTIZATIONS
        ),
        "a 4-bit checkpoint on this platform (it serves them on CPUs)": (
            river_config_of(vllm_config).in_4_bit and not current_platform.is_cpu()
        ),
        "vLLM's speculative decoding (leave out --speculative-config; --river-verify drafts with "
        "the river)": not isinstance(vllm_config.speculative_config, RiverSpeculativeConfig | None),
        "pooling models (vLLM serves them without a river)": model.runner_type != "generate",
        "LoRA adapters (leave out --enable-lora, or merge the adapter into the model)": (
            vllm_config.lora_config is not None
        ),
        f"dtype {dtype} on the CPU (use --dtype bfloat16)": (
            current_platform.is_cpu() and dtype != "bfloat16"
        ),
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
    }
    refused |= _drafts_refused(vllm_config)
    refused |= _runner_v2_refused(vllm_config)
    refused |= _memory_refused(vllm_config)
    for reason, applies in refused.items():
        if applies:
            raise UnsupportedModelError(f"River cannot be combined with {reason}", cure="")


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


def _runner_v2_refused(vllm_config: VllmConfig) -> dict[str, bool]:
    """Settings that choose vLLM's model runner V2, or need it. River runs on V1."""
    return {
        f"vLLM's model runner V2 (leave out {RUNNER_V2}=1)": (
            vllm_envs.VLLM_USE_V2_MODEL_RUNNER is True
        ),
        "watermarking, which needs vLLM's model runner V2 (leave out --watermark-config)": (
            vllm_config.watermark_config is not None
        ),
        "HiSparse, which needs vLLM's model runner V2 (leave hisparse_config out of "
        "--attention-config)": vllm_config.attention_config.hisparse_config is not None,
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
    }


def _choose_runner_v1(vllm_config: VllmConfig) -> None:
    """Have vLLM run the engine on its model runner V1; on CUDA it would take V2.

    vLLM reads the choice from the environment, which its processes inherit.

    Raises:
        UnsupportedModelError: this process has settled on V2.
    """
    if vllm_config.use_v2_model_runner:
        os.environ[RUNNER_V2] = "0"
    if vllm_config.use_v2_model_runner:
        raise UnsupportedModelError(
            "River needs vLLM's model runner V1, and an engine that runs in this process already "
            f"has settled on V2 (set {RUNNER_V2}=0 before it starts)",
            cure="",
        )


def _install(vllm_config: VllmConfig) -> None:
    vllm_config.scheduler_config.scheduler_cls = SCHEDULER
    vllm_config.parallel_config.worker_cls = CPU_WORKER if current_platform.is_cpu() else GPU_WORKER
    layers = vllm_config.model_config.get_total_num_hidden_layers()
    if river_config_of(vllm_config).offloads(layers):
        # A compiled forward holds every layer's backbone, and here some layers have none.
        vllm_config.model_config.enforce_eager = True
    if current_platform.is_cpu():
        _run_eager_without_compiler(vllm_config)
    else:
        # An exit is a branch on data, and a CUDA graph never runs Python. On the CPU steps with
        # exits have a compiled forward of their own (``model/compiled.py``).
        vllm_config.model_config.enforce_eager = True


def _run_eager_without_compiler(vllm_config: VllmConfig) -> None:
    """Run uncompiled if torch cannot compile: vLLM would end with pages of compiler errors."""
    wanted = vllm_config.compilation_config.mode != CompilationMode.NONE
    if vllm_config.model_config.enforce_eager or not wanted:
        return
    if reason := cannot_compile():
        vllm_config.model_config.enforce_eager = True
        logger.warning(
            "River: %s, so the model runs without being compiled, which is slower. Install g++ 10 "
            "or later and Python's headers (Debian: apt install g++ python3-dev), or name a "
            "compiler with CXX; --enforce-eager asks for this and leaves this warning out",
            reason,
        )


def _name_graphs(vllm_config: VllmConfig) -> None:
    """Have vLLM key its compiled forwards by all that they depend on (``graph_key.py``)."""
    given = vllm_config.additional_config
    # vLLM reads settings of its own from a dict only. A dict goes into the key as a whole.
    if isinstance(given, dict) and set(given) <= {CONFIG_KEY}:
        checkpoint = getattr(vllm_config.model_config.hf_config, CHECKPOINT_KEY, None)
        vllm_config.additional_config = RiverAdditionalConfig(given, checkpoint)
