"""Block hashes of requests that may exit, with vLLM's own requests and hasher."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace

import pytest
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

from river_vllm.config import RiverConfig
from river_vllm.engine.scheduler import isolate
from river_vllm.request import RiverSettings

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
    ],
    ids=["threshold", "min_layers", "scope", "quantizer"],
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
