"""Engines and the server are started once in a process of the run, and shared by its tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# The scheduler runs in the test process, so that every request is queued before the first step
# and two engines see the same batches; reading K/V sends functions to the worker.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tests.support import parallel

parallel.keep_to_one_core()

from tests.support import checkpoints, engines  # noqa: E402
from tests.support.forms import form  # noqa: E402
from tests.support.server import RiverServer  # noqa: E402

# A job that a script has put into the background ignores Ctrl-C, and so would what tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What ``-n auto`` means here."""
    return parallel.processes()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> parallel.Scheduler:
    return parallel.Scheduler(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if parallel.WORKER is not None:
        parallel.longest_first(items)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return checkpoints.smollm2()


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.tiny_qwen2(tmp_path_factory.mktemp("tiny-qwen2"))


@pytest.fixture(scope="session")
def tiny_int8(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in W8A8."""
    # Here, as it imports vLLM, which the first process of a run in several has no use for.
    from experiments.make_quantized import write_copy

    folder = tmp_path_factory.mktemp("tiny-int8")
    write_copy(tiny_qwen2, folder, "w8a8")
    return folder


@pytest.fixture(scope="session")
def stock_smollm2(smollm2: Path) -> Any:
    return engines.stock_engine(smollm2, **engines.THINKING)


@pytest.fixture(scope="session")
def river_smollm2(smollm2: Path) -> Any:
    return engines.river_engine(smollm2, max_logprobs=64, logprobs_mode="raw_logits")


@pytest.fixture(scope="session")
def stock_qwen2(tiny_qwen2: Path) -> Any:
    """Reports log-probabilities after penalties and masks."""
    return engines.stock_engine(tiny_qwen2, logprobs_mode="processed_logprobs", **engines.THINKING)


@pytest.fixture(scope="session")
def river_qwen2(tiny_qwen2: Path) -> Any:
    return engines.river_engine(tiny_qwen2, max_logprobs=64, logprobs_mode="raw_logits")


@pytest.fixture(scope="session")
def stock_int8(tiny_int8: Path) -> Any:
    return engines.stock_engine(tiny_int8)


@pytest.fixture(scope="session")
def river_int8(tiny_int8: Path) -> Any:
    return engines.river_engine(tiny_int8)


@pytest.fixture(scope="session")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RiverServer]:
    """River's own server on SmolLM2; in the short form uncompiled, as compiling takes minutes:
    tests/server/test_verified.py has a compiled one."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    options = (
        *form(short=("--enforce-eager",), long=()),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        *("--river-scope", "token", "--river-max-rows", "all"),  # what pays depends on the machine
        # Small blocks fill, so that what the prefix cache shares can be seen.
        *("--block-size", "32", "--enable-prompt-tokens-details"),
        *("--middleware", "tests.support.probe.TaskProbe"),
    )
    with RiverServer(smollm2, log, options) as running:
        yield running
