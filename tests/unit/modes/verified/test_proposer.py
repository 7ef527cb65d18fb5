"""The drafter seam, on a fake of vLLM's runner and a made-up river."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from river_vllm.config import RiverConfig
from river_vllm.costs import Costs
from river_vllm.modes.verified import RECENT
from river_vllm.modes.verified.acceptance import PRIOR, Acceptance
from river_vllm.modes.verified.proposer import RiverProposer
from river_vllm.modes.verified.vocabulary import Vocabulary
from river_vllm.request import default_settings, settings_of

K = 3
VOCABULARY = 64
CHEAP = Costs.fixed({"draft": {1: 0.001}, "backbone": {1: 0.1, 32: 0.1}})
"""Costs at which every draft pays."""


class CountingRiver:
    """Says that after token t comes t + 1."""

    def __init__(self) -> None:
        self.steps: list[tuple[list[int], list[int], list[int]]] = []
        self.heads: list[list[int] | None] = []

    river = SimpleNamespace(agreed=lambda values: values)

    def decode(
        self,
        spans: Any,
        tokens: torch.Tensor,
        layers: int,
        head: str,
        columns: torch.Tensor | None,
    ) -> Any:
        assert (layers, head) == (0, "draft")
        positions = [s.start + i for s in spans for i in range(s.rows)]
        assert len(positions) == len(tokens)
        self.steps.append(([s.request for s in spans], tokens.tolist(), positions))
        return tokens, columns

    def logits(self, due: Any) -> torch.Tensor:
        tokens, columns = due
        logits = torch.zeros(len(tokens), VOCABULARY)
        logits[torch.arange(len(tokens)), tokens + 1] = 20.0
        self.heads.append(None if columns is None else columns.tolist())
        return logits if columns is None else logits[:, columns]


def request(prompt: int, river: Any = None, **params: Any) -> Any:
    values = {"temperature": 0.0, "max_tokens": 100} | params
    extra = None if river is None else {"river": river}
    return SimpleNamespace(
        num_prompt_tokens=prompt, sampling_params=SamplingParams(extra_args=extra, **values)
    )


@pytest.fixture
def proposer() -> RiverProposer:
    made: Any = object.__new__(RiverProposer)
    made.device = torch.device("cpu")
    made._river_runner = SimpleNamespace(
        input_batch=SimpleNamespace(req_ids=[], num_reqs=0),
        requests={},
        discard_request_mask=SimpleNamespace(np=np.zeros(8, dtype=bool)),
        max_model_len=1000,
        river_exact=False,
    )
    made._most = K
    made._acceptance = Acceptance()
    made._pending = {}
    made._size = VOCABULARY
    made._vocabulary = None
    made._forward = CountingRiver()
    made._costs = Costs()
    made._adaptive = False
    proposer: RiverProposer = made
    return proposer


def propose(
    proposer: Any,
    requests: dict[str, Any],
    lengths: list[int],
    rows: list[int],
    sampled: list[int],
    rejected: list[int] | None = None,
    temperature: list[float] | None = None,
    known: list[int] | None = None,
    named: dict[int, list[int]] | None = None,
) -> list[list[int]]:
    """One step: ``rows`` of each request up to ``lengths``, and the token that it sampled."""
    runner = proposer._river_runner
    runner.requests = requests
    defaults = default_settings(RiverConfig(verify=K))
    runner.river_requests = {
        name: SimpleNamespace(settings=settings_of(one.sampling_params, defaults))
        for name, one in requests.items()
    }
    texts = np.zeros((len(requests), 1000), dtype=np.int32)
    # Without repetitions there is nothing to guess.
    texts[:] = np.arange(1000) + 1000
    if known:
        texts[0, : len(known)] = known
    runner.input_batch = SimpleNamespace(
        req_ids=list(requests), num_reqs=len(requests), token_ids_cpu=texts
    )
    starts = np.concatenate(([0], np.cumsum(rows))).tolist()
    proposed: list[list[int]] = proposer.propose(
        num_speculative_tokens=K,
        target_token_ids=None,
        target_positions=None,
        target_hidden_states=None,
        next_token_ids=torch.tensor(sampled),
        token_indices_to_sample=None,
        common_attn_metadata=SimpleNamespace(
            seq_lens=torch.tensor(lengths), query_start_loc_cpu=torch.tensor(starts)
        ),
        sampling_metadata=SimpleNamespace(
            all_greedy=temperature is None,
            temperature=None if temperature is None else torch.tensor(temperature),
            top_k=None,
            top_p=None,
            generators={},
            logprob_token_ids=named,
        ),
        num_rejected_tokens_gpu=None if rejected is None else torch.tensor(rejected),
    )
    return proposed


def test_a_draft_starts_at_the_token_that_was_just_sampled(proposer: Any) -> None:
    """Its position is the number of tokens whose K/V is exact."""
    requests = {"a": request(7), "b": request(4)}
    assert propose(proposer, requests, [7, 4], [7, 4], [10, 20]) == [[11, 12, 13], [21, 22, 23]]
    assert proposer._forward.steps == [
        ([0, 1], [10, 20], [7, 4]),
        ([0, 1], [11, 21], [8, 5]),
        ([0, 1], [12, 22], [9, 6]),
    ]
    assert proposer.take_last_draft_probs() is None


def test_rejected_tokens_are_taken_off(proposer: Any) -> None:
    """Four rows were verified from position 7 on, two of the three drafts rejected."""
    proposed = propose(proposer, {"a": request(7)}, [11], [4], [30], rejected=[2])
    assert proposed == [[31, 32, 33]]
    assert proposer._forward.steps[0] == ([0], [30], [9])


def test_what_became_of_a_draft_is_learnt_once(proposer: Any) -> None:
    requests = {"a": request(7)}
    propose(proposer, requests, [7], [7], [10])
    propose(proposer, requests, [11], [4], [30], rejected=[3])
    low = proposer._acceptance.rate("a")
    assert low < PRIOR
    # Computed again after a preemption: nothing of its last draft was verified.
    propose(proposer, requests, [9], [9], [30])
    assert proposer._acceptance.rate("a") == pytest.approx(low, abs=0.01)
    proposer.forget(["a"])
    assert proposer._pending == {}


def test_who_does_not_draft(proposer: Any) -> None:
    requests = {
        "off": request(4, {"enabled": False}),
        "exits": request(4, {"threshold": 0.5}),
        "ended": request(4, stop_token_ids=[20]),
        "last": request(4, max_tokens=1),
        "chunk": request(400),
        "drafts": request(4),
    }
    proposer._river_runner.discard_request_mask.np[4] = True
    proposed = propose(proposer, requests, [4] * 6, [4] * 6, [20] * 6)
    assert proposed == [[], [], [], [], [], [21, 22, 23]]
    assert {rows for step in proposer._forward.steps for rows in step[0]} == {5}


def test_a_step_with_a_first_token_drafts_nothing(proposer: Any) -> None:
    """Where costs decide."""
    proposer._adaptive, proposer._costs = True, CHEAP
    both = {"a": request(7), "b": request(4)}
    assert propose(proposer, both, [9, 4], [1, 4], [10, 20]) == [[], []]
    assert proposer._forward.steps == []
    assert propose(proposer, both, [10, 5], [1, 1], [10, 20]) == [[11, 12, 13], [21, 22, 23]]
    # Computed again after a preemption, it is not the first.
    assert propose(proposer, {"a": request(7)}, [12], [12], [10]) == [[11, 12, 13]]


@pytest.mark.parametrize(
    "other", [request(4, max_tokens=1), request(4, river={"enabled": False})], ids=["one", "off"]
)
def test_a_first_token_of_a_request_that_never_drafts_stops_nobody(
    proposer: Any, other: Any
) -> None:
    proposer._adaptive, proposer._costs = True, CHEAP
    step = ({"a": request(7), "other": other}, [9, 4], [1, 4], [10, 20])
    assert propose(proposer, *step) == [[11, 12, 13], []]


@pytest.mark.parametrize(("left", "drafted"), [(1, 0), (2, 1), (4, 3), (9, 3)])
def test_a_draft_leaves_room_for_the_backbones_token(
    proposer: Any, left: int, drafted: int
) -> None:
    """``left`` tokens may still come after the one just sampled: two of the answer's are there."""
    requests = {"a": request(4, max_tokens=2 + left), "b": request(4, max_tokens=None)}
    proposer._river_runner.max_model_len = 6 + left
    proposed = propose(proposer, requests, [5, 5], [1, 1], [20, 20])
    assert [len(tokens) for tokens in proposed] == [drafted, drafted]


@pytest.mark.parametrize(("least", "drafted"), [(2, 3), (3, 0), (4, 1), (5, 2), (6, 3), (99, 3)])
def test_no_step_crosses_the_least_number_of_tokens(
    proposer: Any, least: int, drafted: int
) -> None:
    """Two tokens of the answer are there. vLLM lets the token after the drafts end the answer, or
    not, by what was there before them."""
    (tokens,) = propose(proposer, {"a": request(4, min_tokens=least)}, [5], [1], [20])
    assert len(tokens) == drafted


def test_after_a_drafted_end_nothing_is_drafted(proposer: Any) -> None:
    """The backbone has said what would come after it; vLLM cuts that off and the request ends."""
    ending = request(7, stop_token_ids=[12])
    assert propose(proposer, {"a": ending}, [7], [7], [10]) == [[11, 12]]
    steps = len(proposer._forward.steps)
    assert propose(proposer, {"a": ending}, [10], [3], [13], rejected=[0]) == [[]]
    assert len(proposer._forward.steps) == steps
    # An end that the backbone has not confirmed is none.
    assert propose(proposer, {"b": ending}, [7], [7], [10]) == [[11, 12]]
    assert propose(proposer, {"b": ending}, [10], [3], [30], rejected=[1]) == [[31, 32, 33]]


def test_what_a_grammar_may_cut_is_handed_over_as_certain(proposer: Any) -> None:
    """Which drafts reach the rejection sampler depends on the drafts themselves then."""
    grammar = StructuredOutputsParams(regex="[a-z]*")
    cut = request(4, temperature=1.0, structured_outputs=grammar)
    requests = {"cut": cut, "plain": request(4, temperature=1.0)}
    proposed = propose(proposer, requests, [4, 4], [4, 4], [20, 30], temperature=[1.0, 1.0])
    certain, drawn = proposer.take_last_draft_probs()
    assert certain.max(dim=1).indices.tolist() == proposed[0]
    assert certain.max(dim=1).values.tolist() == [1.0] * K
    assert (certain > 0).sum() == K
    assert ((drawn.max(dim=1).values > 0.9) & (drawn.max(dim=1).values < 1.0)).all()


def test_sampled_requests_hand_their_probabilities_over(proposer: Any) -> None:
    """By the request's row in the batch, for every level."""
    requests = {"greedy": request(4), "sampled": request(4, temperature=1.0)}
    proposed = propose(proposer, requests, [4, 4], [4, 4], [20, 30], temperature=[0.0, 1.0])
    probabilities = proposer.take_last_draft_probs()
    assert probabilities.shape == (2, K, VOCABULARY)
    for level, token in enumerate(proposed[1]):
        assert probabilities[1, level].sum() == pytest.approx(1.0)
        assert probabilities[1, level, token] > 0.9


def test_there_are_probabilities_for_every_drafted_token(proposer: Any) -> None:
    """vLLM takes as many rows of a greedy request too: with fewer, those behind it shift."""
    requests = {"greedy": request(4), "sampled": request(4, temperature=1.0, max_tokens=3)}
    proposed = propose(proposer, requests, [4, 4], [4, 4], [10, 20], temperature=[0.0, 1.0])
    assert [len(tokens) for tokens in proposed] == [K, 1]
    probabilities = proposer.take_last_draft_probs()
    assert probabilities.shape == (2, K, VOCABULARY)
    assert probabilities[1, 0].sum() == pytest.approx(1.0)


def test_of_a_draft_that_is_withdrawn_nothing_is_learnt(proposer: Any) -> None:
    propose(proposer, {"a": request(7)}, [7], [7], [30])
    proposer.withdraw()
    propose(proposer, {"a": request(7)}, [11], [4], [31], rejected=[3])
    assert proposer._acceptance.rate("a") == PRIOR


def test_who_may_not_draft_changes_nothing_that_is_known(proposer: Any) -> None:
    for request_id in ("a", "b"):
        propose(proposer, {request_id: request(7)}, [7], [7], [30])
        propose(proposer, {request_id: request(7)}, [11], [4], [31], rejected=[3])
    known = proposer._acceptance.rate("new")
    assert known < PRIOR
    for _ in range(100):
        propose(proposer, {"off": request(7, {"enabled": False})}, [8], [1], [31])
    assert proposer._acceptance.rate("new") == known


@pytest.mark.parametrize(("rejected", "warned"), [(K, 1), (0, 0)])
def test_a_river_that_never_agrees_is_warned_of_once(
    proposer: Any, warnings: list[str], rejected: int, warned: int
) -> None:
    """As one of broken weights does not."""
    requests, length = {"a": request(7, max_tokens=None)}, 7
    propose(proposer, requests, [length], [7], [30])
    for _ in range(2 * RECENT // K):
        propose(proposer, requests, [length + 1 + K], [1 + K], [30], [rejected])
        length += 1 + K - rejected
    assert sum("--river-weights" in line for line in warnings) == warned


def test_guesses_are_rows_of_the_same_pass(proposer: Any) -> None:
    """The river counts on. Where the text did so before, one pass confirms it, and goes further."""
    text = [10, 11, 12, 9, 10]
    assert propose(proposer, {"a": request(4)}, [5], [1], [11], known=text) == [[12, 13, 14]]
    # The last two tokens, 10 and 11, were followed by 12 and 9: right, and wrong.
    assert proposer._forward.steps == [
        ([0], [11, 12, 9], [5, 6, 7]),
        ([0], [13], [7]),
    ]
    assert proposer._acceptance.guess_rate("a") == pytest.approx(0.5, abs=0.1)


def test_guesses_that_do_not_pay_are_not_made(proposer: Any) -> None:
    dear = Costs.fixed({"draft": {1: 0.01, 2: 0.03, 4: 0.06}, "backbone": {1: 0.1, 32: 0.1}})
    proposer._adaptive, proposer._costs = True, dear
    text = [10, 11, 12, 9, 10]
    assert propose(proposer, {"a": request(4)}, [5], [1], [11], known=text) == [[12, 13, 14]]
    assert [tokens for _, tokens, _ in proposer._forward.steps] == [[11], [12], [13]]


def test_sampled_guesses_hand_their_probabilities_over(proposer: Any) -> None:
    text, odd = [10, 11, 12, 13, 10], request(4, temperature=1.0)
    (tokens,) = propose(proposer, {"a": odd}, [5], [1], [11], temperature=[1.0], known=text)
    probabilities = proposer.take_last_draft_probs()
    assert probabilities.shape == (1, K, VOCABULARY)
    assert (probabilities[0, torch.arange(3), torch.tensor(tokens)] > 0.9).all()


LISTED = torch.arange(8, 40)
TEXT = [50, 9, 9]


def test_drafts_are_tokens_of_the_list(proposer: Any) -> None:
    """The river counts on: to the end of the list, and on where the text has named the next one."""
    proposer._vocabulary = Vocabulary(LISTED, 10 * VOCABULARY)
    (found,) = propose(proposer, {"a": request(3)}, [3], [3], [37], known=TEXT)
    assert found[:2] == [38, 39]
    assert found[2] in (*range(8, 40), 50), "40 is neither listed nor in the text"
    assert proposer._forward.heads == [[*range(8, 40), 50]] * 3
    (found,) = propose(proposer, {"c": request(4)}, [4], [4], [38], known=[40, *TEXT])
    assert found[:2] == [39, 40]


def test_what_a_token_was_sampled_from_is_zero_beside_the_list(proposer: Any) -> None:
    proposer._vocabulary = Vocabulary(LISTED, 10 * VOCABULARY)
    propose(proposer, {"a": request(3, temperature=1.0)}, [3], [3], [20], None, [1.0], TEXT)
    (probabilities,) = proposer.take_last_draft_probs()
    assert probabilities.shape == (K, VOCABULARY)
    assert probabilities.sum(1).tolist() == pytest.approx([1.0] * K)
    assert (probabilities > 0).nonzero()[:, 1].unique().tolist() == [*range(8, 40), 50]
    assert (probabilities[torch.arange(K), torch.arange(21, 21 + K)] > 0.9).all()


def test_requests_that_have_ended_leave_nothing_behind(proposer: Any) -> None:
    proposer._vocabulary = Vocabulary(LISTED, 10 * VOCABULARY)
    propose(proposer, {"a": request(3)}, [3], [3], [20], known=TEXT)
    assert proposer._vocabulary._requests
    proposer.forget(["a"])
    assert not proposer._vocabulary._requests


def test_beside_an_exact_request_a_verifying_pass_is_stocks(proposer: Any) -> None:
    """Where stock's product takes as many times as long for as many rows, nothing is drafted."""
    proposer._adaptive = True
    stock, own = {1: 0.09, 8: 0.72}, {1: 0.09, 8: 0.1}
    costs = Costs.fixed({"backbone": stock, "draft": {1: 0.001}, "verify": own})
    proposer._costs = costs
    lengths, rows, sampled = [17, 14], [1, 1], [10, 20]
    alone = propose(proposer, {"a": request(7), "b": request(4)}, lengths, rows, sampled)
    assert all(alone)
    proposer._river_runner.river_exact = True
    beside = {"a": request(7), "b": request(4, river={"enabled": False})}
    assert propose(proposer, beside, lengths, rows, sampled) == [[], []]


def test_drafts_that_do_not_seem_to_pay_are_tried_with_one_token(proposer: Any) -> None:
    proposer._adaptive = True
    costs = Costs.fixed({"draft": {1: 1.0}, "backbone": {1: 0.1, 8: 0.1}})
    proposer._costs = costs
    step = ({"a": request(7)}, [17], [1], [10])
    assert propose(proposer, *step) == [[]]
    costs.try_drafts = lambda *_: True  # type: ignore[method-assign]
    assert propose(proposer, *step) == [[11]]
    assert len(proposer._forward.steps) == 1
    # A request that may not draft is none to try it with.
    beside = {"a": request(7, river={"enabled": False})}
    assert propose(proposer, beside, *step[1:]) == [[]]


def test_the_picks_of_one_rank_decide_on_all(proposer: Any) -> None:
    """Another rank's river is less sure, and likes another token: it drafts alike all the same."""
    proposer._adaptive, proposer._costs = True, CHEAP
    step, said = ({"a": request(7)}, [17], [1], [10]), []
    agreed = lambda values: said.append(values) or values  # noqa: E731
    proposer._forward.river = SimpleNamespace(agreed=agreed)
    first, passes = propose(proposer, *step), proposer._forward.steps
    assert first == [[11, 12, 13]]

    class Unsure(CountingRiver):
        def logits(self, due: Any) -> torch.Tensor:
            return super().logits(due).roll(1, dims=1) / 8

    proposer._forward, proposer._acceptance = Unsure(), Acceptance()
    assert propose(proposer, *step) != first
    proposer._forward, proposer._acceptance = Unsure(), Acceptance()
    proposer._forward.river = SimpleNamespace(agreed=lambda _: said.pop(0))
    assert propose(proposer, *step) == first
    assert proposer._forward.steps == passes


def test_nothing_is_drafted_that_would_be_thrown_away(proposer: Any) -> None:
    """Beside a request that asks for the log-probabilities of tokens that it names."""
    requests = {"a": request(7), "b": request(4)}
    assert propose(proposer, requests, [7, 4], [7, 4], [10, 20], named={1: [5]}) == [[], []]
    assert proposer._forward.steps == []
