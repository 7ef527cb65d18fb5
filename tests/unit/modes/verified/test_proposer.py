"""The drafter seam, on a fake of vLLM's runner and a made-up river."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.v1.spec_decode.draft_model import DraftModelProposer

from river_vllm.config import RiverConfig
from river_vllm.costs import Costs
from river_vllm.modes.verified import RECENT
from river_vllm.modes.verified.depth import PRIOR
from river_vllm.modes.verified.draft import Picked, pick
from river_vllm.modes.verified.proposer import RiverProposer
from river_vllm.request import default_settings, settings_of
from river_vllm.step.table import Rows
from tests.unit.support import config_with

K = 3
VOCABULARY = 64
CHEAP = Costs.fixed({"draft": {1: 0.001}, "backbone": {1: 0.1, 32: 0.1}})
"""Costs at which every draft pays."""


class River:
    """Says that after token t comes t + 1."""

    graphs = None

    def __init__(self, sure: float = 20.0) -> None:
        self.steps: list[tuple[list[int], list[int], list[int]]] = []
        """Of each pass its requests, tokens and positions."""
        self.sure, self.after = sure, 1
        self.river: Any = SimpleNamespace(agreed=lambda values: values)

    def decode(self, spans: Any, tokens: torch.Tensor, layers: int, head: str) -> Any:
        assert (layers, head) == (0, "draft")
        rows = Rows.of(spans, torch.device("cpu"))
        self.steps.append(([s.request for s in spans], tokens.tolist(), rows.positions.tolist()))
        return SimpleNamespace(spans=spans, tokens=tokens, rows=rows)

    def following(self, due: Any, tokens: torch.Tensor) -> Any:
        spans = [span._replace(start=span.start + 1) for span in due.spans]
        return self.decode(spans, tokens, 0, "draft")

    def logits(self, due: Any) -> torch.Tensor:
        logits = torch.zeros(len(due.tokens), VOCABULARY)
        logits[torch.arange(len(due.tokens)), due.tokens + self.after] = self.sure
        return logits


@pytest.fixture(autouse=True)
def _no_draft_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(self: Any, config: Any, device: torch.device, runner: Any) -> None:
        self.device, self.speculative_config = device, config.speculative_config

    monkeypatch.setattr(DraftModelProposer, "__init__", init)


class Engine:
    """A runner and its proposer; drafts are of a fixed length unless there are costs."""

    def __init__(self, river: River | None = None, costs: Costs | None = None) -> None:
        self.river = river or River()
        self.runner: Any = SimpleNamespace(
            discard_request_mask=SimpleNamespace(np=np.zeros(8, dtype=bool)),
            max_model_len=1000,
            river_exact=False,
            river_forward=self.river,
            river_costs=costs or Costs(),
        )
        settings = {"verify": K, "draft": "adaptive" if costs else "fixed"}
        config = config_with(
            settings,
            {"get_vocab_size": lambda: VOCABULARY},
            speculative_config=SimpleNamespace(num_speculative_tokens=K),
        )
        self.proposer = RiverProposer(config, torch.device("cpu"), self.runner)

    def rate(self, name: str) -> float:
        """How many of a request's drafts are expected to be kept."""
        return self.proposer._acceptance.rate(name)

    def probabilities(self) -> Any:
        return self.proposer.take_last_draft_probs()

    def propose(
        self,
        requests: dict[str, Any],
        lengths: list[int],
        rows: list[int],
        sampled: list[int],
        rejected: list[int] | None = None,
        known: list[int] | None = None,
        named: dict[int, list[int]] | None = None,
    ) -> list[list[int]]:
        """One step: ``rows`` of each request up to ``lengths``, and the token that it sampled."""
        self.runner.requests = requests
        defaults = default_settings(RiverConfig(verify=K))
        settings = {n: settings_of(one.sampling_params, defaults) for n, one in requests.items()}
        self.runner.river_requests = settings
        # Without repetitions there is nothing to guess.
        texts = np.tile(np.arange(1000, 2000, dtype=np.int32), (len(requests), 1))
        texts[0, : len(known or [])] = known or []
        self.runner.input_batch = SimpleNamespace(
            req_ids=list(requests), num_reqs=len(requests), token_ids_cpu=texts
        )
        temperature = [one.sampling_params.temperature for one in requests.values()]
        return self.proposer.propose(
            num_speculative_tokens=K,
            target_token_ids=torch.empty(0),
            target_positions=torch.empty(0),
            target_hidden_states=torch.empty(0),
            next_token_ids=torch.tensor(sampled),
            token_indices_to_sample=None,
            common_attn_metadata=SimpleNamespace(
                seq_lens=torch.tensor(lengths),
                query_start_loc_cpu=torch.tensor([0, *np.cumsum(rows)]),
            ),
            sampling_metadata=SimpleNamespace(
                all_greedy=not any(temperature),
                temperature=torch.tensor(temperature) if any(temperature) else None,
                top_k=None,
                top_p=None,
                generators={},
                logprob_token_ids=named,
            ),
            num_rejected_tokens_gpu=None if rejected is None else torch.tensor(rejected),
        )


def request(prompt: int, river: Any = None, **params: Any) -> Any:
    values = {"temperature": 0.0, "max_tokens": 100} | params
    extra = None if river is None else {"river": river}
    return SimpleNamespace(
        num_prompt_tokens=prompt, sampling_params=SamplingParams(extra_args=extra, **values)
    )


OFF = {"enabled": False}


def test_a_draft_starts_at_the_token_that_was_just_sampled() -> None:
    """Its position is the number of tokens whose K/V is exact."""
    engine, requests = Engine(), {"a": request(7), "b": request(4)}
    assert engine.propose(requests, [7, 4], [7, 4], [10, 20]) == [[11, 12, 13], [21, 22, 23]]
    assert engine.river.steps == [
        ([0, 1], [10, 20], [7, 4]),
        ([0, 1], [11, 21], [8, 5]),
        ([0, 1], [12, 22], [9, 6]),
    ]
    assert engine.probabilities() is None
    # Of four rows from position 7 on, the last two are rejected drafts.
    engine = Engine()
    assert engine.propose({"a": request(7)}, [11], [4], [30], rejected=[2]) == [[31, 32, 33]]
    assert engine.river.steps[0] == ([0], [30], [9])


def test_what_became_of_a_draft_is_learnt_once() -> None:
    engine, requests = Engine(), {"a": request(7)}
    engine.propose(requests, [7], [7], [10])
    engine.proposer.withdraw()
    engine.propose(requests, [11], [4], [30], rejected=[3])
    assert engine.rate("a") == PRIOR, "nothing is learnt of a draft that is withdrawn"
    engine.propose(requests, [12], [4], [30], rejected=[3])
    low = engine.rate("a")
    assert low < PRIOR
    # Computed again after a preemption: nothing of its last draft was verified.
    engine.propose(requests, [9], [3], [30])
    assert engine.rate("a") == pytest.approx(low, abs=0.01)
    known = engine.rate("new")
    for _ in range(100):
        engine.propose({"off": request(7, OFF)}, [8], [1], [31])
    assert engine.rate("new") == known, "who may not draft changes nothing that is known"


def test_who_does_not_draft() -> None:
    engine = Engine()
    requests = {
        "off": request(4, OFF),
        "exits": request(4, {"threshold": 0.5}),
        "ended": request(4, stop_token_ids=[20]),
        "last": request(4, max_tokens=1),
        "chunk": request(400),
        "drafts": request(4),
    }
    engine.runner.discard_request_mask.np[4] = True
    found = engine.propose(requests, [4] * 6, [4] * 6, [20] * 6)
    assert found == [[], [], [], [], [], [21, 22, 23]]
    assert {rows for step in engine.river.steps for rows in step[0]} == {5}
    # Drafts would be thrown away beside log-probabilities of tokens that a request names.
    requests = {"a": request(7), "b": request(4)}
    assert Engine().propose(requests, [7, 4], [7, 4], [10, 20], named={1: [5]}) == [[], []]


def test_a_step_with_a_first_token_drafts_nothing() -> None:
    """Where costs decide; and unless that request never drafts."""
    engine, both = Engine(costs=CHEAP), {"a": request(7), "b": request(4)}
    assert engine.propose(both, [9, 4], [1, 4], [10, 20]) == [[], []]
    assert engine.river.steps == []
    assert engine.propose(both, [10, 5], [1, 1], [10, 20]) == [[11, 12, 13], [21, 22, 23]]
    # Computed again after a preemption, it is not the first.
    assert engine.propose({"a": request(7)}, [12], [12], [10]) == [[11, 12, 13]]
    for other in (request(4, max_tokens=1), request(4, OFF)):
        step = ({"a": request(7), "other": other}, [9, 4], [1, 4], [10, 20])
        assert Engine(costs=CHEAP).propose(*step) == [[11, 12, 13], []]


def test_after_a_drafted_end_nothing_is_drafted() -> None:
    """The backbone has said what would come after it; vLLM cuts that off and the request ends."""
    engine, ending = Engine(), request(7, stop_token_ids=[12])
    assert engine.propose({"a": ending}, [7], [7], [10]) == [[11, 12]]
    assert engine.propose({"a": ending}, [10], [3], [13], rejected=[0]) == [[]]
    # An end that the backbone has not confirmed is none.
    assert engine.propose({"b": ending}, [7], [7], [10]) == [[11, 12]]
    assert engine.propose({"b": ending}, [10], [3], [30], rejected=[1]) == [[31, 32, 33]]


@pytest.mark.parametrize(("rejected", "warned"), [(K, 1), (0, 0)])
def test_a_river_that_never_agrees_is_warned_of_once(
    warnings: list[str], rejected: int, warned: int
) -> None:
    """As one of broken weights does not."""
    engine, requests, length = Engine(), {"a": request(7, max_tokens=None)}, 7
    engine.propose(requests, [length], [7], [30])
    for _ in range(2 * RECENT // K):
        engine.propose(requests, [length + 1 + K], [1 + K], [30], [rejected])
        length += 1 + K - rejected
    assert sum("--river-weights" in line for line in warnings) == warned


def test_guesses_are_rows_of_the_same_pass_where_they_pay() -> None:
    """The river counts on. Where the text did so before, one pass confirms it, and goes further."""
    step: Any = ({"a": request(4)}, [5], [1], [11])
    engine, text = Engine(), [10, 11, 12, 9, 10]
    assert engine.propose(*step, known=text) == [[12, 13, 14]]
    # The last two tokens, 10 and 11, were followed by 12 and 9: right, and wrong.
    assert engine.river.steps == [([0], [11, 12, 9], [5, 6, 7]), ([0], [13], [7])]
    dear = Costs.fixed({"draft": {1: 0.01, 2: 0.03, 4: 0.06}, "backbone": {1: 0.1, 32: 0.1}})
    engine = Engine(costs=dear)
    assert engine.propose(*step, known=text) == [[12, 13, 14]]
    assert [tokens for _, tokens, _ in engine.river.steps] == [[11], [12], [13]]


@pytest.mark.parametrize(("temperature", "sure"), [(0.0, 4.35), (1.0, 60.0)])
def test_guesses_follow_a_draft_where_no_further_pass_pays(temperature: float, sure: float) -> None:
    """The river drafts 12. The text went on with 40 and 41 after 11 and 12."""
    slow = Costs.fixed({"draft": {1: 0.07}, "backbone": {1: 0.1, 32: 0.1}})
    engine, requests = Engine(River(sure), slow), {"a": request(4, temperature=temperature)}
    found = engine.propose(requests, [5], [1], [11], known=[11, 12, 40, 41, 9])
    assert found == [[12, 40, 41]]
    assert len(engine.river.steps) == 1
    if temperature:
        # Certain tokens are accepted with the backbone's probability.
        certain = engine.probabilities()[0, 1:].nonzero().tolist()
        assert certain == [[0, 40], [1, 41]]
    acceptance = engine.proposer._acceptance
    before = acceptance.rate("a"), acceptance.guess_rate("a", 2)
    # The backbone keeps the river's token and rejects the guess after it.
    engine.propose(requests, [9], [4], [30], rejected=[2])
    assert acceptance.rate("a") > before[0]
    assert acceptance.guess_rate("a", 2) < before[1]


def test_beside_an_exact_request_a_verifying_pass_is_stocks() -> None:
    """Where stock's product takes as many times as long for as many rows, nothing is drafted."""
    stock, own = {1: 0.09, 8: 0.72}, {1: 0.09, 8: 0.1}
    engine = Engine(costs=Costs.fixed({"backbone": stock, "draft": {1: 0.001}, "verify": own}))
    step = [17, 14], [1, 1], [10, 20]
    assert all(engine.propose({"a": request(7), "b": request(4)}, *step))
    engine.runner.river_exact = True
    assert engine.propose({"a": request(7), "b": request(4, OFF)}, *step) == [[], []]


def test_drafts_that_do_not_seem_to_pay_are_tried_with_one_token() -> None:
    costs = Costs.fixed({"draft": {1: 1.0}, "backbone": {1: 0.1, 8: 0.1}})
    engine, step = Engine(costs=costs), ([17], [1], [10])
    assert engine.propose({"a": request(7)}, *step) == [[]]
    costs.try_drafts = lambda *_: True  # type: ignore[method-assign]
    assert engine.propose({"a": request(7)}, *step) == [[11]]
    assert len(engine.river.steps) == 1
    # Also where the text has a guess: only a draft pass tells what drafts are worth.
    assert engine.propose({"a": request(4)}, [5], [1], [10], known=[9, 10, 40, 41, 9]) == [[11]]
    assert len(engine.river.steps) == 2
    assert engine.propose({"a": request(7, OFF)}, *step) == [[]]


def test_the_picks_of_one_rank_decide_on_all() -> None:
    """Another rank's river is less sure, and likes another token: it drafts alike all the same."""
    said: list[Any] = []
    first, other = River(), River(sure=2.5)
    other.after = 2
    first.river.agreed = lambda values: said.append(values) or values
    step: Any = ({"a": request(7)}, [17], [1], [10])
    found = Engine(first, CHEAP).propose(*step)
    assert Engine(other, CHEAP).propose(*step) != found
    other.steps.clear()
    other.river.agreed = lambda _: said.pop(0)
    assert Engine(other, CHEAP).propose(*step) == found == [[11, 12, 13]]
    assert other.steps == first.steps


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_passes_that_follow_one_another_unread_find_the_same(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the host reads tokens once for as many passes as every request has room for."""
    reads = []
    read = Picked.read
    monkeypatch.setattr(Picked, "read", lambda picked: reads.append(picked) or read(picked))
    # The second request may have one token more.
    requests = {
        "a": request(7, temperature=temperature),
        "b": request(4, max_tokens=4, temperature=temperature),
    }
    step: Any = (requests, [17, 5], [1, 1], [10, 30])
    expected = Engine(River(60.0), CHEAP)
    found = Engine(River(60.0), CHEAP)
    found.proposer._unread = True
    drafts = [[11, 12, 13], [31]]
    assert expected.propose(*step) == drafts
    assert len(reads) == 3
    assert found.propose(*step) == drafts
    # One pass for both, and two for the first.
    assert len(reads) == 5
    assert found.river.steps == expected.river.steps
    if temperature:
        assert torch.equal(found.probabilities(), expected.probabilities())


def metadata(temperature: list[float] | None, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "all_greedy": temperature is None,
        "temperature": None if temperature is None else torch.tensor(temperature),
        "top_k": None,
        "top_p": None,
        "generators": {},
    }
    return SimpleNamespace(**(values | changes))


LOGITS = torch.tensor([[0.0, 2.0, 1.0, -1.0], [3.0, 0.0, 0.0, 0.0]])
ROWS = torch.tensor([2, 0])


def test_greedy() -> None:
    picked = pick(LOGITS.clone(), ROWS, metadata(None), [])
    assert picked.tokens.tolist() == [1, 0]
    assert torch.allclose(picked.confidence, LOGITS.softmax(-1).amax(-1))
    assert picked.probabilities is None


def test_each_row_takes_its_own_requests_settings() -> None:
    """Row 0 of the logits is the batch's row 2."""
    settings = metadata([0.0, 1.0, 0.5], top_k=torch.tensor([4, 4, 2]))
    picked = pick(LOGITS.clone(), ROWS, settings, ROWS.tolist())
    assert picked.tokens[1] == 0
    assert picked.probabilities is not None
    expected = torch.tensor([4.0, 2.0]).softmax(-1)
    assert torch.allclose(picked.probabilities[0, [1, 2]], expected)
    assert picked.probabilities[0, [0, 3]].sum() == 0


@pytest.mark.parametrize("temperature", [1e-6, 1.0])
def test_confidence_is_the_rivers_own_whatever_the_temperature(temperature: float) -> None:
    picked = pick(LOGITS.clone(), ROWS, metadata([temperature] * 3), [2, 0])
    assert torch.allclose(picked.confidence, LOGITS.softmax(-1).amax(-1))
