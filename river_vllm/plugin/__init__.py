"""Registration with vLLM: model classes by name, and configuration hooks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from typing import Any

from river_vllm.config import CONFIG_KEY, PREFIX, RiverConfig, asks_for_river
from river_vllm.errors import RiverError, UnsupportedModelError
from river_vllm.host import quiet_while_starting
from river_vllm.plugin.naming import checkpoint_architecture, river_architecture

GRACE_SECONDS = 10.0
"""Time in which vLLM may end by itself, as a serving engine does on SIGTERM."""
WATCH = "river-parent-watch"


def register_all() -> None:
    """Register every River class with vLLM, and a configuration hook for every architecture.

    Idempotent; imports no model code. An engine process that serves a river also ends with its
    parent process, and logs no alarm about a normal start. Other engines stay as they were.

    Raises:
        UnsupportedModelError: the engine of this process asks for a river and has none.
    """
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
    from vllm.model_executor.models.registry import ModelRegistry

    from river_vllm.plugin.hook import RiverConfigHook, opt_in

    _see_to_the_engine()
    if RiverConfigHook in MODELS_CONFIG_MAP.values():
        return
    for name in {*ModelRegistry.models, *MODELS_CONFIG_MAP}:
        MODELS_CONFIG_MAP[name] = opt_in(MODELS_CONFIG_MAP.get(name, VerifyAndUpdateConfig))
    for architecture in tuple(ModelRegistry.models):
        name = PREFIX + architecture
        ModelRegistry.register_model(name, f"river_vllm.plugin.classes:{name}")
        MODELS_CONFIG_MAP[name] = RiverConfigHook


def _see_to_the_engine() -> None:
    """Set up the process of an engine before its model is loaded; do nothing in others.

    vLLM tells a plugin nothing about the engine that loads it. The engine's configuration is an
    argument of the process (``v1/engine/utils.py``, ``CoreEngineProcManager``).
    """
    from river_vllm.plugin.refusals import SCHEDULER

    process = multiprocessing.current_process()
    if (vllm_config := getattr(process, "_kwargs", {}).get("vllm_config")) is None:
        return
    if vllm_config.scheduler_config.scheduler_cls == SCHEDULER:
        end_with_parent()
        quiet_while_starting()
    elif asks_for_river(vllm_config):
        raise UnsupportedModelError(
            f"architecture '{vllm_config.model_config.architecture}' is not supported: the plugin "
            "that brings it registered it after River"
        )


def end_with_parent(grace: float = GRACE_SECONDS) -> None:
    """In an engine's process, end with the parent process; elsewhere do nothing.

    A server that is killed with SIGKILL leaves vLLM 0.32's engine and workers behind: for more than
    a quarter of an hour while the model loads, and for more than 40 s while a request runs. While
    it loads, the engine defers SIGTERM (``v1/engine/core.py``, ``run_engine_core``).

    Args:
        grace: seconds between SIGTERM and the hard end of the engine and its workers.
    """
    parent = multiprocessing.parent_process()
    # The prefix is that of vLLM's ``v1/engine/utils.py``.
    named = multiprocessing.current_process().name.startswith("EngineCore")
    watched = any(thread.name == WATCH for thread in threading.enumerate())
    if parent is not None and named and not watched:
        threading.Thread(target=_watch, args=(parent, grace), daemon=True, name=WATCH).start()


def _watch(parent: BaseProcess, grace: float) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    for worker in multiprocessing.active_children():
        worker.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def merge_engine_args(model: str, config: RiverConfig, options: dict[str, Any]) -> dict[str, Any]:
    """vLLM engine arguments with River's architecture and settings merged in.

    Raises:
        RiverError: an option has a value that cannot be merged, or River lacks the architecture.
    """
    overrides = options.get("hf_overrides") or {}
    if not isinstance(overrides, Mapping):
        raise RiverError(
            f"hf_overrides = {overrides!r}: must be an object, River adds 'architectures' to it"
        )
    given = overrides.get("architectures")
    named: tuple[Any, ...] = (given[0],) if given else checkpoint_architecture(model, options)
    additional = dict(options.get("additional_config") or {})
    settings = additional.get(CONFIG_KEY) or {}
    if not isinstance(settings, Mapping):
        raise RiverError(f'additional_config["{CONFIG_KEY}"]: expected an object, got {settings!r}')
    additional[CONFIG_KEY] = {**settings, **config.model_dump(exclude_unset=True)}
    return {
        **options,
        "hf_overrides": {**overrides, "architectures": [river_architecture(*named)]},
        "additional_config": additional,
    }
