"""A start: rows that are warmed up, what passes cost, and weights that no later reload may mix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from river_vllm import patches
from river_vllm.config import RiverConfig
from river_vllm.costs import Costs
from river_vllm.engine import warm_up
from river_vllm.engine.warm_up import WarmUpMixin, costs_of_start
from river_vllm.engine.worker import RiverWorkerMixin
from river_vllm.errors import RiverError
from river_vllm.modes.mode import Timed
from tests.unit.support import config_with

PROMPT_ROWS = 2048


class Routed:
    """Stands for the second compiled forward."""

    compiles = True
    always = False

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
        one = SimpleNamespace(world_size=1, data_parallel_size=1)
        self.vllm_config = config_with(self.settings, parallel_config=one)
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


def start(folder: Path, most: int = 4, **settings: Any) -> tuple[Costs, list[int]]:
    """The costs of an engine's start, and the rows of the backbone's passes that it timed."""
    config = RiverConfig(cache_dir=str(folder), **settings)
    sizes = {"get_hidden_size": lambda: 64, "get_vocab_size": lambda: 128}
    vllm_config = config_with(
        config.model_dump(exclude_unset=True),
        {"model": "tiny", "dtype": torch.bfloat16, **sizes},
        lora_config=None,
        compilation_config=SimpleNamespace(mode=0),
        parallel_config=SimpleNamespace(nnodes=1),
    )
    info = {"num_layers": 3, "isa": None, "kernels": [], "river_bytes": 1, "backbone_bytes": 2}
    model = SimpleNamespace(river_info=lambda: info)
    runner = SimpleNamespace(vllm_config=vllm_config, get_model=lambda: model)
    ran: list[int] = []
    forward: Any = SimpleNamespace(
        river=SimpleNamespace(num_layers=3),
        idle=lambda rows, layers, head: [rows] * (layers == 3),
        logits=lambda due: ran.extend(due) or torch.zeros(1, 1),
    )
    timed = {
        "draft": Timed(lambda rows: forward.idle(rows, 0, "draft"), 1),
        "river": Timed(lambda rows: forward.idle(rows, 1, "backbone"), most),
    }
    return costs_of_start(runner, forward, timed), ran  # type: ignore[arg-type]


@pytest.mark.usefixtures("vllm_world")
def test_a_start_measures_what_no_start_with_these_settings_has(tmp_path: Path) -> None:
    first, ran = start(tmp_path)
    assert set(ran) == {1, 2, 4}
    second, ran = start(tmp_path, threshold=0.5)
    assert ran == [] and second.crossover() == first.crossover()
    for other in ({"most": 2}, {"activations": "int8"}, {"min_layers": 2}):
        assert start(tmp_path, **other)[1] != []
    # A folder that cannot be written to costs a measurement.
    (tmp_path / "file").touch()
    assert start(tmp_path / "file")[1] != []


class FakeWorker:
    """What the mixin uses of a worker of vLLM's."""

    def __init__(self, river: dict[str, Any]) -> None:
        self.vllm_config = config_with(river, {"get_total_num_hidden_layers": lambda: 12})
        self.reloaded: list[dict[str, Any]] = []

    def reload_weights(self, **how: Any) -> None:
        self.reloaded.append(how)


class Worker(RiverWorkerMixin, FakeWorker):
    pass


@pytest.mark.parametrize(("layers", "reloads"), [("all", True), (4, False)])
def test_weights_that_are_read_as_they_are_needed_cannot_be_reloaded(
    layers: Any, reloads: bool
) -> None:
    """An answer would mix new layers with old ones."""
    worker = Worker({"resident_layers": layers, "min_layers": 2})
    with nullcontext() if reloads else pytest.raises(RiverError, match="restart River"):
        worker.reload_weights(weights_path="new")
    assert worker.reloaded == [{"weights_path": "new"}] * reloads
