"""Late backbone layers out of memory: what stays is the same model, as deep as it still goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from river_vllm import RiverConfig
from tests.support import engines
from tests.support.engines import generate, generate_alone, greedy
from tests.support.prompts import PROMPTS

pytestmark = pytest.mark.engine

LAYERS = 6
RESIDENT = 3
OFF = {"enabled": False}


def forced(layers: int) -> dict[str, Any]:
    return {"threshold": -1.0, "min_layers": layers}


@pytest.fixture(scope="session")
def whole(tiny_qwen2: Path) -> Any:
    """Every layer in memory; prompts leave with their tokens."""
    config = RiverConfig(prefill="sequence", scope="token", max_rows="all")
    return engines.river_engine(tiny_qwen2, config)


@pytest.fixture(scope="session")
def exiting(tiny_qwen2: Path) -> Any:
    config = RiverConfig(
        prefill="sequence", resident_layers=RESIDENT, scope="token", max_rows="all"
    )
    return engines.river_engine(tiny_qwen2, config)


@pytest.fixture(scope="session")
def fetching(tiny_qwen2: Path) -> Any:
    config = RiverConfig(resident_layers=2, deep="fetch", scope="token")
    return engines.river_engine(tiny_qwen2, config)


def backbone_weights(engine: Any) -> list[int]:
    """Per decoder layer: elements of bf16 weights that can be reached, packed ones included."""

    def count(model: Any) -> list[int]:
        from river_vllm.compat import LinearBase

        found = []
        for layer in model.model.layers:
            linears = [m for m in layer.modules() if isinstance(m, LinearBase)]
            found.append(sum(m.weight.numel() + (m.cpu_linear is not None) for m in linears))
        return found

    counts: list[int] = engine.apply_model(count)[0]
    return counts


def test_up_to_the_last_resident_layer_nothing_changes(whole: Any, exiting: Any) -> None:
    for layers in range(1, RESIDENT + 1):
        params = greedy(32, forced(layers))
        expected = generate(whole, PROMPTS[:6], params)
        found = generate(exiting, PROMPTS[:6], params)
        assert [g.tokens for g in found] == [g.tokens for g in expected]
        assert {depth for g in found for depth in g.exit_layers} == {layers}


def test_no_token_goes_deeper(exiting: Any) -> None:
    """Prompts, and tokens whose similarity is never reached, leave after the last one."""
    for answer in generate(exiting, PROMPTS[:6], greedy(24, {"threshold": 0.999})):
        assert answer.exit_layers == [RESIDENT] * 24
    for answer in generate(exiting, PROMPTS[:6], greedy(24, {"threshold": 0.6})):
        assert max(answer.exit_layers) <= RESIDENT


def test_the_weights_are_gone(exiting: Any, fetching: Any, whole: Any) -> None:
    """No bf16 tensor and no repacked copy of one is left; the 4-bit ones are all there."""
    assert [n > 0 for n in backbone_weights(whole)] == [True] * LAYERS
    assert [n > 0 for n in backbone_weights(exiting)] == [True] * 3 + [False] * 3
    info, complete = (e.collective_rpc("river_info")[0] for e in (exiting, whole))
    assert (info["num_layers"], info["resident_layers"], info["deep"]) == (LAYERS, RESIDENT, "exit")
    # Per layer: q, k, v, o and the MLP's three, of 128 features and 256 in between.
    layer = 128 * (128 + 64 + 64 + 128) + 3 * 128 * 256
    assert info["backbone_bytes"] == RESIDENT * layer * 2
    assert complete["backbone_bytes"] == LAYERS * layer * 2
    assert info["river_bytes"] == complete["river_bytes"]


@pytest.mark.parametrize("alone", [True, False])
def test_fetched_layers_are_stock(stock_qwen2: Any, fetching: Any, alone: bool) -> None:
    run = generate_alone if alone else generate
    prompts = PROMPTS[:3] if alone else PROMPTS[:8]
    expected = run(stock_qwen2, prompts, greedy(24))
    found = run(fetching, prompts, greedy(24, OFF))
    assert [g.tokens for g in found] == [g.tokens for g in expected]
    assert {depth for g in found for depth in g.exit_layers} == {LAYERS}
    info = fetching.collective_rpc("river_info")[0]
    assert info["fetches"] > 4
    assert len(info["fetched_layers"]) == 2
    held = [n > 0 for n in backbone_weights(fetching)]
    assert held == [i < 2 or i in info["fetched_layers"] for i in range(LAYERS)]


def test_fetching_serves_every_depth(river_qwen2: Any, fetching: Any) -> None:
    settings = [forced(2), OFF, forced(5), {"threshold": 0.75}]
    params = [greedy(24, s) for s in settings]
    expected = generate(river_qwen2, PROMPTS[:4], params)
    found = generate(fetching, PROMPTS[:4], params)
    assert [g.exit_layers for g in found] == [g.exit_layers for g in expected]
    assert [g.tokens for g in found] == [g.tokens for g in expected]
