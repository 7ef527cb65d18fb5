"""Drafts and the pass that verifies them, captured as one CUDA graph, rehearsed on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from river_vllm import RiverConfig
from river_vllm.model.forward import Forward
from river_vllm.model.graphs import PassGraphs
from river_vllm.step.table import Pass, Span, StepTable
from tests.cuda.rehearsal import Graph, Uncapturable, capture, rehearse
from tests.support.engines import generate, greedy, river_engine
from tests.support.pool import runner_of

pytestmark = pytest.mark.engine

K = 3
PROMPTS = [list(range(first, first + 40)) for first in (50, 300, 900)]
GREEDY = SimpleNamespace(greedy=True)


@pytest.fixture(scope="module")
def runner(tiny_qwen2: Path) -> Iterator[Any]:
    """Has three requests under way; every product is an operator of torch's or vLLM's."""
    config = RiverConfig(verify=K, draft="fixed", kernel="torch", quantizer="rtn")
    engine = river_engine(tiny_qwen2, config)
    for index, prompt in enumerate(PROMPTS):
        engine.llm_engine.add_request(str(index), {"prompt_token_ids": prompt}, greedy(64))
    engine.llm_engine.step()
    yield runner_of(engine)


Inputs = tuple[torch.Tensor, torch.Tensor]


class Round:
    """K draft passes and the verifying one, over buffers of their own."""

    def __init__(self, runner: Any, tokens: list[int], back: int) -> None:
        """``back``: how far before the end of the prompts the drafts begin."""
        self.forward: Forward = runner.river_forward
        self.proposer = runner.drafter
        self.layers = self.forward.river.num_layers
        starts = [len(prompt) - back for prompt in PROMPTS]
        places = range(len(PROMPTS))
        given = torch.tensor(tokens)
        draft = [Span(i, starts[i], 1) for i in places]
        verify = [Span(i, starts[i], 1 + K) for i in places]
        self.draft = self.forward.decode(draft, given, 0, "draft")
        rows = given.repeat_interleave(1 + K)
        self.verify = self.forward.decode(verify, rows, self.layers, "backbone")

    def __call__(self) -> tuple[torch.Tensor, ...]:
        """Tokens and confidences of the drafts, and the backbone's logits."""
        requests = [span.request for span in self.draft.spans]
        table = StepTable.forced(self.layers, requests, 0, torch.device("cpu"))
        drafts = [GREEDY] * len(requests)
        picked = self.proposer._pick(replace(self.draft, table=table), K, drafts, None)
        rows = self.verify.inputs["input_ids"].view(-1, 1 + K)
        rows[:, 0].copy_(self.draft.inputs["input_ids"])
        rows[:, 1:].copy_(picked.tokens.view(K, -1).T)
        return picked.tokens, picked.confidence, self.forward.logits(self.verify)

    def take(self, other: Round) -> None:
        """Put the inputs of ``other`` in the place of the own ones."""
        for mine, others in zip(self._buffers(), other._buffers(), strict=True):
            mine.copy_(others)

    def _buffers(self) -> Iterator[torch.Tensor]:
        for due in (self.draft, self.verify):
            yield from (due.inputs["input_ids"], due.inputs["positions"])
            assert due.rows is not None
            yield from (due.rows.positions, due.rows.lengths, due.rows.starts, due.rows.requests)


def captured(run: Callable[[], Any]) -> tuple[Graph, Any]:
    graph = Graph()
    with torch.inference_mode(), capture(graph):
        return graph, run()


def test_a_replay_drafts_and_verifies_as_eager_passes_do(runner: Any) -> None:
    """A graph keeps nothing of the inputs that it was captured with."""
    first, second = Round(runner, [7, 8, 9], back=8), Round(runner, [70, 80, 90], back=5)
    graph, found = captured(first)
    with torch.inference_mode():
        for one, two in zip(found, first(), strict=True):
            assert torch.equal(one, two)
        before = [part.clone() for part in found]
        first.take(second)
        graph.replay()
        for part, old, expected in zip(found, before, second(), strict=True):
            assert torch.equal(part, expected)
            assert not torch.equal(part, old)


def test_a_decision_by_similarity_is_no_part_of_a_graph(runner: Any) -> None:
    """The host reads it, and no replay would ask again."""
    forward: Forward = runner.river_forward
    due = forward.decode([Span(0, 30, 1)], torch.tensor([7]), 0, "backbone")
    layers = forward.river.num_layers
    due.table = StepTable(layers, [1], [0.9], [2])
    with pytest.raises(Uncapturable):
        captured(lambda: forward.run(due))
    forward.river.rest()


def test_a_token_read_between_two_drafts_is_no_part_of_a_graph(
    runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward: Forward = runner.river_forward
    following = Forward.following

    def read(forward: Forward, due: Pass, tokens: torch.Tensor) -> Pass:
        return following(forward, due, tokens if tokens.max() else tokens + 1)

    monkeypatch.setattr(Forward, "following", read)
    with pytest.raises(Uncapturable):
        captured(Round(runner, [7, 8, 9], back=8))
    forward.river.rest()


@pytest.fixture(scope="module")
def engine(tiny_qwen2: Path) -> Any:
    return river_engine(
        tiny_qwen2,
        RiverConfig(verify=K, draft="fixed", kernel="torch", scope="token", max_rows="all"),
    )


@pytest.fixture
def replayed(engine: Any, monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """The graphs that the engine replays: as on a GPU it captures passes, and reads late."""
    rehearse(monkeypatch)
    found: list[Graph] = []
    replay = Graph.replay
    monkeypatch.setattr(Graph, "replay", lambda graph: found.append(graph) or replay(graph))  # type: ignore[func-returns-value]
    runner = runner_of(engine)
    forward: Forward = runner.river_forward
    made = PassGraphs(forward._routed, runner.max_model_len)
    monkeypatch.setattr(forward, "graphs", made)
    monkeypatch.setattr(runner.drafter, "_unread", True)
    return found


@pytest.mark.parametrize(
    "field", [None, {"threshold": -1.0, "min_layers": 1}, {"threshold": 0.5, "min_layers": 1}]
)
def test_an_engine_answers_by_its_graphs_as_without(
    field: Any, engine: Any, replayed: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts, and exits at a fixed depth; a similarity decides in Python, without any graph."""
    params = greedy(24, field)
    found = generate(engine, PROMPTS, params)
    runner = runner_of(engine)
    kept = runner.river_forward.graphs._kept
    by_similarity = field is not None and field["threshold"] > -1
    assert bool(replayed) == bool(kept) == (not by_similarity)
    if field is None:
        # All draft passes of a step are one graph: K of them, and fewer at the end of an answer.
        assert (len(PROMPTS), 0, K) in kept
        assert all(depth == 0 and passes > 0 for _, depth, passes in kept)
    else:
        assert all((depth, passes) == (1, 0) for _, depth, passes in kept)
    monkeypatch.setattr(runner.river_forward, "graphs", None)
    engine.reset_prefix_cache()
    assert found == generate(engine, PROMPTS, params)


def test_as_many_graphs_as_are_allowed(
    engine: Any, replayed: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("river_vllm.model.graphs.GRAPHS", 1)
    for field in (None, {"threshold": -1.0, "min_layers": 1}):
        generate(engine, PROMPTS, greedy(8, field))
    assert [depth for _, depth, _ in runner_of(engine).river_forward.graphs._kept] == [0]


def test_a_pass_that_cannot_be_captured_runs(
    engine: Any, replayed: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", fail)
    assert len(generate(engine, PROMPTS, greedy(8))) == len(PROMPTS)
    assert replayed == []
