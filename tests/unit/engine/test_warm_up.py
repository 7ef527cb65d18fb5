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

    def __init__(self) -> None:
        self.compiles = True
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
        self.sampled: list[str] = []
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
        self.sampled.append(last)


class Runner(WarmUpMixin, FakeRunner):
    pass


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setattr(warm_up, "reads_compiled_forwards", lambda config: True)
    return Runner()


def test_what_is_read_back_is_warmed_up_over_decode_rows(runner: Runner) -> None:
    runner.warming_up_model()
    assert runner.passes == [("vllm", 16), ("river", 16)]
    assert runner.compiled == []
    assert runner.sampled == ["last", "last"]


def test_vllms_forward_is_compiled_with_vllms_own_rows(runner: Runner) -> None:
    """Their number is a hint to the compiler: with others its code could round differently."""
    runner.stored = {"vllm": False, "river": False}
    runner.warming_up_model()
    assert runner.compiled == [("vllm", PROMPT_ROWS), ("river", 16)]


def test_only_the_forward_that_is_not_there_is_compiled(runner: Runner) -> None:
    runner.stored["river"] = False
    runner.warming_up_model()
    assert runner.compiled == [("river", 16)]
    assert runner.passes == [("vllm", 16), ("river", 16)]


@pytest.mark.parametrize(("fails", "at_once"), [(False, [True]), (True, [True, False])])
def test_where_layers_cannot_be_compiled_at_once_each_is(
    runner: Runner, fails: bool, at_once: list[bool]
) -> None:
    runner.stored["river"] = False
    runner.fails = fails
    runner.warming_up_model()
    assert runner.at_once == at_once
    assert runner.compiled == [("river", 16)]
    assert runner.routed.forgotten is fails


def test_where_nothing_is_read_back_vllms_pass_is_its_own(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_up, "reads_compiled_forwards", lambda config: False)
    runner.warming_up_model()
    assert runner.passes == [("vllm", PROMPT_ROWS), ("river", 16)]


@pytest.mark.parametrize("field", ["world_size", "data_parallel_size"])
def test_ranks_that_meet_in_a_pass_all_run_the_same_one(runner: Runner, field: str) -> None:
    """Whether or not the file of each is there."""
    setattr(runner.vllm_config.parallel_config, field, 2)
    runner.warming_up_model()
    assert runner.passes == [("vllm", PROMPT_ROWS), ("river", 16)]


def test_a_pass_that_shows_the_memory_in_use_is_vllms_own(runner: Runner) -> None:
    runner.cache_config.kv_cache_memory_bytes = None
    runner.warming_up_model()
    assert runner.passes == [("vllm", PROMPT_ROWS), ("river", 16)]


def test_prompts_that_may_exit_are_rows_of_rivers_graph(runner: Runner) -> None:
    runner.settings["prefill"] = "sequence"
    runner.stored["river"] = False
    runner.warming_up_model()
    assert runner.compiled == [("river", PROMPT_ROWS)]


def test_one_request_at_a_time_still_compiles_for_any_number_of_rows(runner: Runner) -> None:
    runner.max_num_reqs = 1
    runner.stored["river"] = False
    runner.warming_up_model()
    assert runner.compiled == [("river", 2)]


def test_without_a_second_compiled_forward_there_is_one_pass(runner: Runner) -> None:
    runner.routed.compiles = False
    runner.warming_up_model()
    assert runner.passes == [("vllm", 16)]


def test_a_later_profile_run_is_vllms_own(runner: Runner) -> None:
    runner.warming_up_model()
    runner.passes.clear()
    runner.profile_run()
    assert runner.passes == [("vllm", PROMPT_ROWS)]
