"""vLLM's configuration hooks: River's own, which sets up the engine, and the way to it."""

from __future__ import annotations

import os
from functools import cache

from river_vllm import patches
from river_vllm.compat import (
    MODELS_CONFIG_MAP,
    CompilationMode,
    ModelConfig,
    VerifyAndUpdateConfig,
    VllmConfig,
    current_platform,
    init_logger,
)
from river_vllm.config import (
    CHECKPOINT_KEY,
    CONFIG_KEY,
    PREFIX,
    asks_for_river,
    river_config_of,
    serves_river,
)
from river_vllm.engine_config import RiverAdditionalConfig, speculate
from river_vllm.errors import UnsupportedModelError
from river_vllm.host import cannot_compile
from river_vllm.plugin.naming import river_architecture
from river_vllm.plugin.refusals import (
    CPU_WORKER,
    GPU_WORKER,
    RUNNER_V2,
    SCHEDULER,
    check_settings,
    refuse,
)

logger = init_logger("vllm.river")


class RiverConfigHook(VerifyAndUpdateConfig):
    """Runs in every process that builds a ``VllmConfig``, first in the one the user started."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Point vLLM at River's worker and scheduler.

        Raises:
            RiverError: a setting is wrong, or the engine mode has no place for a river.
        """
        architecture = vllm_config.model_config.architecture or ""
        if base := MODELS_CONFIG_MAP.get(architecture.removeprefix(PREFIX)):
            base.verify_and_update_config(vllm_config)
        check_settings(vllm_config)
        refuse(vllm_config)
        _choose_runner_v1(vllm_config)
        _install(vllm_config)
        _name_graphs(vllm_config)
        patches.install("front end")
        config = river_config_of(vllm_config)
        if config.drafts:
            speculate(vllm_config, config.drafts)


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
    cpu, model = current_platform.is_cpu(), vllm_config.model_config
    if not cpu and vllm_config.parallel_config.worker_cls != GPU_WORKER:
        logger.warning(
            "River: nobody has reported a run on a GPU yet; 'make gpu-check' compares its answers "
            "with stock vLLM's (docs/gpu.md)"
        )
    vllm_config.scheduler_config.scheduler_cls = SCHEDULER
    vllm_config.parallel_config.worker_cls = CPU_WORKER if cpu else GPU_WORKER
    # A compiled forward and a CUDA graph hold every layer's backbone, and an offloading engine
    # lacks some. Passes with exits run in neither (``model/compiled.py``).
    if river_config_of(vllm_config).offloads(model.get_total_num_hidden_layers()):
        model.enforce_eager = True
    elif cpu:
        _run_eager_without_compiler(vllm_config)


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
    """Have vLLM key its compiled forwards by all that they depend on (``engine_config.py``)."""
    given = vllm_config.additional_config
    # vLLM reads settings of its own from a dict only. A dict goes into the key as a whole.
    if isinstance(given, dict) and set(given) <= {CONFIG_KEY}:
        checkpoint = getattr(vllm_config.model_config.hf_config, CHECKPOINT_KEY, None)
        vllm_config.additional_config = RiverAdditionalConfig(given, checkpoint)


@cache
def opt_in(own: type[VerifyAndUpdateConfig]) -> type[VerifyAndUpdateConfig]:
    """The hook for an architecture of vLLM's or of another plugin.

    For an engine with ``additional_config["river"]`` it replaces vLLM's model class by River's, as
    ``hf_overrides`` with ``River<Architecture>`` does. For other engines it calls ``own``.

    Args:
        own: the architecture's hook so far, or vLLM's base class, which does nothing.
    """

    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        if asks_for_river(vllm_config) and not serves_river(vllm_config):
            _take_rivers_class(vllm_config.model_config)
            # River's hook calls this one again, which then calls ``own``.
            RiverConfigHook.verify_and_update_config(vllm_config)
        else:
            own.verify_and_update_config(vllm_config)

    members = {"verify_and_update_config": staticmethod(verify_and_update_config)}
    return type("OptIn", (own,), {**members, "__module__": __name__})


def _take_rivers_class(model: ModelConfig) -> None:
    """Set every field that depends on the architecture's name to that of River's class, as vLLM's
    ``SpeculativeConfig.update_arch_`` does for a draft model."""
    name = river_architecture(model.architecture, model.hf_config)
    model.hf_config.architectures = [name]
    model.model_arch_config = model.get_model_arch_config()
    model._model_info, model._architecture = model.registry.inspect_model_cls([name], model)
    logger.info("River: the model is served as %s", name)
