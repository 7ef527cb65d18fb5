"""Block hashes of requests that may exit, with vLLM's own requests and hasher."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

from river_vllm.config import RiverConfig
from river_vllm.engine.scheduler import RiverSchedulerMixin, isolate
from river_vllm.request import RiverSettings
from tests.unit.support import config_with

BLOCK = 4
PROMPT = list(range(10))
ANSWER = list(range(100, 111))
FULL_BLOCKS = (len(PROMPT) + len(ANSWER)) // BLOCK
PROMPT_BLOCKS = len(PROMPT) // BLOCK
SETTINGS = RiverSettings(True, 0.9, 2)
EXACT = (RiverSettings(False, 0.9, 2), RiverSettings(True, 1.0, 2))


@pytest.fixture(autouse=True, scope="module")
def _seed() -> None:
    init_none_hash(sha256)


def stock(prompt: Sequence[int] = PROMPT) -> Request:
    hasher = get_request_block_hasher(BLOCK, sha256)
    return Request("id", list(prompt), SamplingParams(max_tokens=100), None, block_hasher=hasher)


def river(
    settings: RiverSettings = SETTINGS,
    config: RiverConfig | None = None,
    prompt: Sequence[int] = PROMPT,
) -> Request:
    request = stock(prompt)
    isolate(request, settings, config or RiverConfig(), BLOCK)
    return request


def answer(request: Request, tokens: Sequence[int] = ANSWER) -> list[bytes]:
    """Generate ``tokens`` one by one; returns every block's hash."""
    for token in tokens:
        request.append_output_token_ids(token)
    return list(request.block_hashes)


def test_blocks_past_the_prompt_are_not_those_of_an_exact_request() -> None:
    """Which the follow-up of a conversation is: the answer is part of its prompt."""
    mine, exact = answer(river()), answer(stock())
    assert list(stock(PROMPT + ANSWER).block_hashes) == exact
    assert len(mine) == len(exact) == FULL_BLOCKS
    assert mine[:PROMPT_BLOCKS] == exact[:PROMPT_BLOCKS]
    assert not set(mine[PROMPT_BLOCKS:]) & set(exact)


@pytest.mark.parametrize("settings", EXACT, ids=["off", "never"])
def test_exact_requests_are_as_in_stock_vllm(settings: RiverSettings) -> None:
    assert answer(river(settings)) == answer(stock())
    config = RiverConfig(prefill="sequence")
    assert answer(river(settings, config)) == answer(stock())


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        (RiverSettings(True, 0.8, 2), RiverConfig()),
        (RiverSettings(True, 0.9, 3), RiverConfig()),
        (SETTINGS, RiverConfig(scope="batch")),
        (SETTINGS, RiverConfig(quantizer="rtn")),
        (SETTINGS, RiverConfig(group_size=64)),
    ],
    ids=["threshold", "min_layers", "scope", "quantizer", "group_size"],
)
def test_other_settings_share_the_prompt_only(settings: RiverSettings, config: RiverConfig) -> None:
    mine, other = answer(river()), answer(river(settings, config))
    assert mine[:PROMPT_BLOCKS] == other[:PROMPT_BLOCKS]
    assert not set(mine[PROMPT_BLOCKS:]) & set(other[PROMPT_BLOCKS:])


def test_the_same_settings_share_everything_up_to_another_token() -> None:
    together = river()
    together.append_output_token_ids(ANSWER)
    mine, other = answer(river()), answer(river(), [*ANSWER[:3], 999, *ANSWER[4:]])
    assert list(together.block_hashes) == mine
    assert mine[:3] == other[:3] and not set(mine[3:]) & set(other[3:])


def test_a_prompt_of_whole_blocks_is_exact_to_its_last_one() -> None:
    prompt = PROMPT[: 2 * BLOCK]
    mine, exact = answer(river(prompt=prompt)), answer(stock(prompt))
    assert mine[:2] == exact[:2]
    assert not set(mine[2:]) & set(exact)


def test_a_conversation_finds_its_own_blocks_again_where_the_prompt_may_exit() -> None:
    sequence = RiverConfig(prefill="sequence")
    mine = answer(river(config=sequence))
    assert list(river(config=sequence, prompt=PROMPT + ANSWER).block_hashes) == mine


def test_an_engine_without_later_layers_shares_no_block_with_one_that_has_them() -> None:
    """By a connector's store, say: there a prompt, of an exact request too, ends in 4 bit."""
    shallow = RiverConfig(resident_layers=4, min_layers=2)
    for settings in (SETTINGS, replace(SETTINGS, enabled=False)):
        assert not set(river(settings, shallow).block_hashes) & set(stock().block_hashes)
    fetching = RiverConfig(resident_layers=4, min_layers=2, deep="fetch")
    assert river(replace(SETTINGS, enabled=False), fetching).block_hashes == stock().block_hashes


def test_the_request_is_freed_by_reference_counting() -> None:
    request = river()
    gone = weakref.ref(request)
    gc.disable()
    try:
        del request
        assert gone() is None
    finally:
        gc.enable()


class FakeScheduler:
    """What the mixin uses of vLLM's scheduler."""

    hash_block_size = 16

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.added: list[Any] = []
        self.requests: dict[str, Any] = {}
        self.num_spec_tokens = 0
        self.max_num_running_reqs = 8

    def _handle_stopped_request(self, request: Any) -> bool:
        return not request.resumable

    def add_request(self, request: Any) -> None:
        self.added.append(request)
        self.requests[request.request_id] = request

    def _update_request_as_session(self, session: Any, update: Any) -> None:
        session.sampling_params = update.sampling_params


class Scheduler(RiverSchedulerMixin, FakeScheduler):
    pass


def scheduler(**river: Any) -> Scheduler:
    layers = {"get_total_num_hidden_layers": lambda: 12}
    return Scheduler(vllm_config=config_with(river, layers))


def request(request_id: str, **extra: Any) -> Any:
    params = SamplingParams(extra_args=extra)
    return SimpleNamespace(
        request_id=request_id, num_output_tokens=1, sampling_params=params, _block_hasher=None
    )


def test_streamed_input_goes_on_as_its_first_part_asked() -> None:
    """And keeps what is not River's: a logits processor of the operator's may read it."""
    made = scheduler()
    made.add_request(request("session", river={"threshold": 0.5}))
    later = request("session", own=1, river={"enabled": False})
    made.add_request(later)
    assert later.sampling_params.extra_args == {"own": 1, "river": {"threshold": 0.5}}


def test_streamed_input_is_counted_as_its_own_parameters_have_it_answered() -> None:
    made, session = scheduler(verify=4), request("session")
    made.add_request(session)
    drafted = session.river_mode
    biased = SimpleNamespace(sampling_params=SamplingParams(logit_bias={5: 1.0}))
    made._update_request_as_session(session, biased)
    assert session.river_mode is not drafted
    made._update_request_as_session(session, SimpleNamespace(sampling_params=SamplingParams()))
    assert session.river_mode is drafted


@pytest.mark.parametrize(
    ("drafts", "resumable", "computed"), [(4, True, 9), (4, False, 12), (0, True, 12)]
)
def test_streamed_input_goes_on_before_what_was_drafted_behind_the_end(
    drafts: int, resumable: bool, computed: int
) -> None:
    """The answer ended after 10 tokens of 12 that are computed: its last one is vLLM's to drop."""
    made = scheduler()
    made.num_spec_tokens = drafts
    ended = SimpleNamespace(resumable=resumable, num_computed_tokens=12, num_tokens=10)
    assert made._handle_stopped_request(ended) is not resumable
    assert ended.num_computed_tokens == computed


def test_a_request_made_in_python_hears_that_it_is_not_exact(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("river_vllm.engine.scheduler.isolate", lambda *args: None)
    monkeypatch.setattr("river_vllm.engine.scheduler.logger", logging.getLogger("test"))
    made = scheduler(resident_layers=4)
    made.add_request(request("a", river={"enabled": False}))
    made.add_request(request("b", river={"min_layers": 4}))
    assert len(made.added) == 2
    (record,) = caplog.records
    assert record.getMessage().startswith("request a: 'enabled' = false: must be true")
