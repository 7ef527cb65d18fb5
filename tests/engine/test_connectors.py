"""K/V that a connector brings: what the river wrote never reaches an exact request.

Conversations whose first answer exits early; the engine's own prefix cache is emptied between
turns, so that what is found comes through the connector. The reference is stock vLLM.
"""

from __future__ import annotations

from collections.abc import Callable
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


def with_connector(
    model: Path, config: RiverConfig, transfer: dict[str, Any], talk: Callable[[Any], Any]
) -> Any:
    """What ``talk`` has found on an engine with a connector.

    vLLM keeps the worker's part of a connector for the whole process, where a stock engine of
    another test would use it.
    """
    from vllm.distributed.kv_transfer import ensure_kv_transfer_shutdown

    engine = engines.river_engine(model, config, kv_transfer_config=transfer)
    KEPT.append(engine)
    try:
        return talk(engine)
    finally:
        ensure_kv_transfer_shutdown()


KEPT: list[Any] = []
"""An engine that ends takes the process's distributed groups with it."""


def after_reset(engine: Any, prompt: list[int], settings: Any) -> tuple[list[int], int]:
    engine.reset_prefix_cache()
    return _ask(engine, prompt, settings, TOKENS)


def test_offloaded_blocks_are_found_by_their_hashes(
    tiny_qwen2: Path, stock_qwen2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = (*kv_connectors.OFFLOADING_SPECS, "PlainOffloadingSpec")
    monkeypatch.setattr(kv_connectors, "OFFLOADING_SPECS", specs)

    def talk(engine: Any) -> tuple[list[int], list[int], list[tuple[list[int], int]]]:
        prompt = _first_turn(engine, TOPICS[0])
        answer, _ = _ask(engine, prompt, LAX, ANSWER)
        follow_up = _follow_up(engine, prompt + answer)
        return prompt, follow_up, [after_reset(engine, follow_up, s) for s in (OFF, NEVER, LAX)]

    prompt, follow_up, turns = with_connector(
        tiny_qwen2, RiverConfig(scope="token", max_rows="all"), offload_spec.OPTIONS, talk
    )
    (first, first_hits), (second, second_hits), (_, other_hits) = turns
    assert first == second == _ask(stock_qwen2, follow_up, None, TOKENS)[0]
    # The prompt comes back, and nothing of the answer, which is offloaded as it is in the test
    # below; then what the exact turn has computed.
    assert first_hits == _whole(len(prompt) + 1) > 0
    assert second_hits == other_hits == _whole(len(follow_up))


def test_what_was_drafted_and_verified_is_offloaded_as_the_backbones(
    tiny_qwen2: Path, stock_qwen2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = (*kv_connectors.OFFLOADING_SPECS, "PlainOffloadingSpec")
    monkeypatch.setattr(kv_connectors, "OFFLOADING_SPECS", specs)

    def talk(engine: Any) -> tuple[list[int], tuple[list[int], int], int]:
        prompt = _first_turn(engine, TOPICS[0])
        answer, _ = _ask(engine, prompt, None, ANSWER)
        follow_up = _follow_up(engine, prompt + answer)
        return follow_up, after_reset(engine, follow_up, OFF), len(prompt + answer)

    # With torch's kernel verified steps have vLLM's products, and so its bits, on every CPU.
    config = RiverConfig(verify=4, draft="fixed", kernel="torch")
    follow_up, (tokens, hits), said = with_connector(tiny_qwen2, config, offload_spec.OPTIONS, talk)
    assert hits == _whole(said)
    assert tokens == _ask(stock_qwen2, follow_up, None, TOKENS)[0]


def test_a_connector_that_goes_by_tokens_is_refused(tiny_qwen2: Path, tmp_path: Path) -> None:
    """Its tokens are all that vLLM's ExampleConnector knows of a prompt: whoever wrote them, an
    exact request would read them."""
    transfer = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(tmp_path)},
    }
    with pytest.raises(Exception, match="K/V connector 'ExampleConnector': it finds K/V by tokens"):
        engines.river_engine(tiny_qwen2, kv_transfer_config=transfer)
