"""Shared by the unit tests: vLLM's configuration and process group, without an engine."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _variables_are_read_anew() -> None:
    """vLLM remembers its variables once an engine has started in this process."""
    if "vllm.envs" in sys.modules:
        sys.modules["vllm.envs"].disable_envs_cache()


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """Lines that River logs; vLLM's loggers do not propagate."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("vllm.river")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@pytest.fixture(scope="module")
def vllm_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """vLLM's current configuration and a process group of one rank.

    A group that an engine of the same process has set up is used and left as it is.
    """
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        destroy_distributed_environment,
        destroy_model_parallel,
        init_distributed_environment,
        initialize_model_parallel,
        model_parallel_is_initialized,
    )

    with set_current_vllm_config(VllmConfig()):
        if model_parallel_is_initialized():
            yield
            return
        store: Path = tmp_path_factory.mktemp("world") / "store"
        init_distributed_environment(1, 0, f"file://{store}", 0, "gloo")
        initialize_model_parallel(1)
        yield
        destroy_model_parallel()
        destroy_distributed_environment()
