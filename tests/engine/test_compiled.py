"""With vLLM's compilation on, as by default: exact requests still get stock vLLM's own bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vllm.compilation.counter import compilation_counter

from river_vllm import RiverConfig
from river_vllm.engine import warm_up
from tests.support import engines
from tests.support.checkpoints import cut
from tests.support.engines import generate, generate_alone, greedy
from tests.support.prompts import PROMPTS
from tests.support.rounding import drafted

pytestmark = pytest.mark.engine

OFF = {"enabled": False}
LAYERS = 8
"""Of SmolLM2's thirty: the time of compiling goes by their number."""


@pytest.fixture(scope="module")
def model(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cut(smollm2, tmp_path_factory.mktemp("cut"), LAYERS)


@pytest.fixture(scope="module")
def stock(model: Path) -> Any:
    return engines.stock_engine(model, enforce_eager=False)


@pytest.fixture(scope="module")
def river(model: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        # What compiles each layer by itself says so there: no start of a test does.
        patch.setattr(warm_up, "logger", None)
        return engines.river_engine(model, enforce_eager=False)


def test_mixed_with_requests_that_exit(stock: Any, river: Any) -> None:
    """Exact rows run compiled in the step's own shape; the others run again by themselves."""
    prompts = PROMPTS[8:16]
    expected = generate(stock, prompts, greedy())
    exiting = {"threshold": -1.0, "min_layers": 2}
    params = [greedy(river=exiting if i % 2 else OFF) for i in range(8)]
    found = generate(river, prompts, params)
    for index in range(0, 8, 2):
        assert found[index].tokens == expected[index].tokens
        assert set(found[index].exit_layers) == {LAYERS}
    for index in range(1, 8, 2):
        assert found[index].exit_layers == [LAYERS] + [2] * 63


def test_a_neighbour_does_not_change_what_exits(river: Any) -> None:
    """The same requests beside exact ones, and beside each other: same depths, same tokens."""
    prompts = PROMPTS[8:12]
    own = {"threshold": 0.9}
    together = generate(river, prompts, greedy(32, own))
    beside = generate(river, PROMPTS[8:16], [greedy(32, own)] * 4 + [greedy(32, OFF)] * 4)[:4]
    assert [g.exit_layers for g in beside] == [g.exit_layers for g in together]
    assert [g.tokens for g in beside] == [g.tokens for g in together]


def test_prompts_join_while_others_decode(stock: Any, river: Any) -> None:
    """Steps that hold a prompt's rows, exact decode rows and exiting ones at once."""
    expected = _staggered(stock, [None, None, None])
    exiting = {"threshold": -1.0, "min_layers": 3}
    found = _staggered(river, [OFF, exiting, OFF])
    assert found[0] == expected[0]
    assert found[2] == expected[2]


def _staggered(engine: Any, settings: list[dict[str, Any] | None]) -> list[list[int]]:
    """Three requests, each added when the one before has made a few tokens."""
    llm = engine.llm_engine
    answers: dict[str, list[int]] = {}
    for index, setting in enumerate(settings):
        llm.add_request(str(index), PROMPTS[14 + index], greedy(40, setting))
        for _ in range(5):
            llm.step()
    while llm.has_unfinished_requests():
        for output in llm.step():
            if output.finished:
                answers[output.request_id] = list(output.outputs[0].token_ids)
    return [answers[str(index)] for index in range(len(settings))]


@pytest.fixture(scope="module")
def second(model: Path, river: Any) -> tuple[Any, tuple[int, int]]:
    """An engine of other settings after one that has compiled; forwards read and compiled."""
    before = compilation_counter.clone()
    config = RiverConfig(verify=4, draft="fixed")
    engine = engines.river_engine(model, config, enforce_eager=False)
    read = compilation_counter.num_aot_artifacts_loaded - before.num_aot_artifacts_loaded
    return engine, (read, compilation_counter.num_aot_compiles - before.num_aot_compiles)


def test_a_second_start_reads_both_forwards_back(
    stock: Any, second: tuple[Any, tuple[int, int]]
) -> None:
    """Of an engine that exits, for one that verifies: no setting of either is in a trace. What is
    read has stock vLLM's bits."""
    engine, counted = second
    assert counted == (2, 0)
    expected = generate_alone(stock, PROMPTS[:4], greedy())
    found = generate_alone(engine, PROMPTS[:4], greedy(river=OFF))
    assert [g.tokens for g in found] == [g.tokens for g in expected]


def test_drafts_in_a_batch_are_those_of_each_request_alone(
    second: tuple[Any, tuple[int, int]],
) -> None:
    """The backbone hides a wrong draft: only how many it keeps tells."""
    engine = second[0]
    _, alone = drafted(engine, PROMPTS[8:14], greedy(), together=False)
    _, together = drafted(engine, PROMPTS[8:14], greedy())
    assert alone.accepted > alone.tokens / 2
    # Near-ties may turn an answer, and with it what is drafted.
    assert abs(together.accepted - alone.accepted) < alone.accepted / 10
