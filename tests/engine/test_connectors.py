"""K/V that a connector brings: what the river wrote never reaches an exact request.

Conversations whose first answer exits early; the engine's own prefix cache is emptied between
turns, so that what is found comes through the connector. The reference is stock vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from river_vllm import RiverConfig
from river_vllm.plugin import refusals as kv_connectors
from tests.engine.test_prefix_isolation import (
    ANSWER,
    LAX,
    NEVER,
    OFF,
    TOPICS,
    _ask,
    _first_turn,
    _follow_up,
    _whole,
)
from tests.support import engines, offload_spec

pytestmark = pytest.mark.engine

TOKENS = 24


@contextmanager
def offloading(model: Path, config: RiverConfig) -> Iterator[Any]:
    """An engine whose blocks go through vLLM's offloading connector, until the block ends.

    vLLM keeps the worker's part of a connector for the whole process, where a stock engine of
    another test would use it.
    """
    from vllm.distributed.kv_transfer import ensure_kv_transfer_shutdown

    specs = (*kv_connectors.OFFLOADING_SPECS, "PlainOffloadingSpec")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_connectors, "OFFLOADING_SPECS", specs)
        engine = engines.river_engine(model, config, kv_transfer_config=offload_spec.OPTIONS)
        try:
            yield engine
        finally:
            ensure_kv_transfer_shutdown()


def after_reset(engine: Any, prompt: list[int], settings: Any) -> tuple[list[int], int]:
    engine.reset_prefix_cache()
    return _ask(engine, prompt, settings, TOKENS)


def test_offloaded_blocks_are_found_by_their_hashes(tiny_qwen2: Path, stock_qwen2: Any) -> None:
    with offloading(tiny_qwen2, RiverConfig(scope="token", max_rows="all")) as engine:
        prompt = _first_turn(engine, TOPICS[0])
        answer, _ = _ask(engine, prompt, LAX, ANSWER)
        follow_up = _follow_up(engine, prompt + answer)
        turns = [after_reset(engine, follow_up, settings) for settings in (OFF, NEVER, LAX)]
    (first, first_hits), (second, second_hits), (_, other_hits) = turns
    assert first == second == _ask(stock_qwen2, follow_up, None, TOKENS)[0]
    # The prompt comes back, and nothing of the answer, which is offloaded as it is in the test
    # below; then what the exact turn has computed.
    assert first_hits == _whole(len(prompt) + 1) > 0
    assert second_hits == other_hits == _whole(len(follow_up))


def test_what_was_drafted_and_verified_is_offloaded_as_the_backbones(
    tiny_qwen2: Path, stock_qwen2: Any
) -> None:
    # With torch's kernel verified steps have vLLM's products, and so its bits, on every CPU.
    with offloading(tiny_qwen2, RiverConfig(verify=4, draft="fixed", kernel="torch")) as engine:
        prompt = _first_turn(engine, TOPICS[0])
        answer, _ = _ask(engine, prompt, None, ANSWER)
        follow_up = _follow_up(engine, prompt + answer)
        tokens, hits = after_reset(engine, follow_up, OFF)
    assert hits == _whole(len(prompt + answer))
    assert tokens == _ask(stock_qwen2, follow_up, None, TOKENS)[0]
