"""What is warmed up over how many rows, on a fake of vLLM's CPU runner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from river_vllm import patches
from river_vllm.engine import warm_up
from river_vllm.engine.warm_up import WarmUpMixin

PROMPT_ROWS = 2048


class Routed:
    """Stands for the second compiled forward."""

    compiles = True

    def __init__(self) -> None:
        self.entered = False
        self.at_once = False
        """Whether layers that are alike are to be compiled once."""
        self.forgotten = False

    def forget(self) -> None:
        self.forgotten = True

    @contextmanager
    def one_layer_for_all(self) -> Iterator[None]:
        self.at_once = True
        try:
            yield
        finally:
            self.at_once = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.entered = True
        yield
        self.entered = False


class FakeRunner:
    """vLLM's runner: ``profile_run`` is its pass over the longest prompt."""

    def __init__(self) -> None:
        self.max_num_tokens = PROMPT_ROWS
        self.max_num_reqs = 16
        self.settings: dict[str, str] = {}
        self.vllm_config = SimpleNamespace(
            parallel_config=SimpleNamespace(world_size=1, data_parallel_size=1),
            additional_config={"river": self.settings},
            model_config=SimpleNamespace(hf_config=SimpleNamespace()),
        )
        self.cache_config = SimpleNamespace(kv_cache_memory_bytes=1 << 28)
        self.routed = Routed()
        self.stored = {"vllm": True, "river": True}
        self.passes: list[tuple[str, int]] = []
        self.compiled: list[tuple[str, int]] = []
        self.at_once: list[bool] = []
        self.fails = False

    def get_model(self) -> Any:
        return SimpleNamespace(river=SimpleNamespace(routed=self.routed))

    def warming_up_model(self) -> None:
        self.profile_run()

    def profile_run(self) -> None:
        self._dummy_run(PROMPT_ROWS, is_profile=True)

    def _dummy_run(self, rows: int, is_profile: bool) -> tuple[str, str]:
        assert is_profile
        forward = "river" if self.routed.entered else "vllm"
        if not self.stored[forward]:
            if patches._stored_only:
                raise patches.NotStored
            self.at_once.append(self.routed.at_once)
            if self.routed.at_once and self.fails:
                raise AssertionError("a region with an argument of another kind")
            self.compiled.append((forward, rows))
            self.stored[forward] = True
        self.passes.append((forward, rows))
        return "hidden", "last"

    def _dummy_sampler_run(self, last: str) -> None:
        pass


class Runner(WarmUpMixin, FakeRunner):
    pass


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setattr(warm_up, "reads_compiled_forwards", lambda config: True)
    return Runner()


@pytest.mark.parametrize(
    ("stored", "passes", "compiled"),
    [
        ({}, [("vllm", 16), ("river", 16)], []),
        # The number of rows is a hint to the compiler: with others vLLM's own code could round
        # differently.
        (
            {"vllm": False, "river": False},
            [("vllm", PROMPT_ROWS), ("river", 16)],
            [("vllm", PROMPT_ROWS), ("river", 16)],
        ),
        ({"river": False}, [("vllm", 16), ("river", 16)], [("river", 16)]),
    ],
)
def test_what_is_read_back_is_warmed_up_over_decode_rows(
    runner: Runner, stored: dict[str, bool], passes: Any, compiled: Any
) -> None:
    runner.stored |= stored
    runner.warming_up_model()
    assert (runner.passes, runner.compiled) == (passes, compiled)
    runner.passes.clear()
    runner.profile_run()
    assert runner.passes == [("vllm", PROMPT_ROWS)], "a later profile run is vLLM's own"


@pytest.mark.parametrize(("fails", "at_once"), [(False, [True]), (True, [True, False])])
def test_where_layers_cannot_be_compiled_at_once_each_is(
    runner: Runner, fails: bool, at_once: list[bool]
) -> None:
    runner.stored["river"] = False
    runner.fails = fails
    runner.warming_up_model()
    assert (runner.at_once, runner.compiled) == (at_once, [("river", 16)])
    assert runner.routed.forgotten is fails


@pytest.mark.parametrize(
    "why", ["nothing is read back", "ranks meet in a pass", "it shows the memory in use"]
)
def test_a_first_pass_that_has_to_be_is_vllms_own(
    runner: Runner, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "nothing is read back":
        monkeypatch.setattr(warm_up, "reads_compiled_forwards", lambda config: False)
    elif why == "ranks meet in a pass":
        runner.vllm_config.parallel_config.world_size = 2
    else:
        runner.cache_config.kv_cache_memory_bytes = None
    runner.warming_up_model()
    assert runner.passes == [("vllm", PROMPT_ROWS), ("river", 16)]


@pytest.mark.parametrize(
    ("settings", "requests", "rows"),
    [
        ({"prefill": "sequence"}, 16, PROMPT_ROWS),  # prompts may exit
        ({}, 1, 2),  # still for any number of rows
    ],
)
def test_rivers_graph_is_compiled_for_the_rows_that_may_exit(
    runner: Runner, settings: dict[str, str], requests: int, rows: int
) -> None:
    runner.settings |= settings
    runner.max_num_reqs = requests
    runner.stored["river"] = False
    runner.warming_up_model()
    assert runner.compiled == [("river", rows)]
