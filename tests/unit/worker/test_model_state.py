"""Model runner V2's model state, on a fake of vLLM's class."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from river_vllm.config import RiverConfig
from river_vllm.request import RiverSettings
from river_vllm.worker.feed import BatchFeed
from river_vllm.worker.model_state import RiverStateMixin, river_model_state_cls
from tests.unit.worker.support import SETTINGS, free

L = 12


class FakeState:
    """What the mixin uses of vLLM's ``ModelState``."""

    def __init__(self) -> None:
        self.added: list[tuple[int, str]] = []

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        self.added.append((req_index, new_req_data.req_id))

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        return {"positions": req_states}


class State(RiverStateMixin, FakeState):
    pass


@pytest.fixture
def state() -> State:
    state = State()
    state.set_up_river(BatchFeed(L, "backbone"), SETTINGS)
    return state


def new(request_id: str, prompt: int, extra_args: Any = None) -> Any:
    return SimpleNamespace(
        req_id=request_id,
        prompt_token_ids=[1] * prompt,
        sampling_params=SimpleNamespace(extra_args=extra_args),
    )


def input_batch(*requests: tuple[str, int, int]) -> Any:
    """``(id, rows, position)`` of each request, with the padding that vLLM leaves behind."""
    counts = [count for _, count, _ in requests]
    return SimpleNamespace(
        req_ids=[name for name, _, _ in requests] + ["padding"],
        num_reqs=len(requests),
        query_start_loc_np=np.array([0, *np.cumsum(counts), 99, 99]),
        num_computed_tokens_np=np.array([position for _, _, position in requests]),
    )


def test_the_batch_joins_the_models_arguments(state: State) -> None:
    state.add_request(3, new("a", 5))
    state.add_request(0, new("b", 7, {"river": {"threshold": 0.1, "min_layers": 4}}))
    assert state.added == [(3, "a"), (0, "b")]
    inputs = state.prepare_inputs(input_batch(("b", 1, 8), ("a", 5, 0)), "p")
    assert inputs["positions"] == "p"
    batch = inputs["river_batch"]
    assert batch.units == [free(0, RiverSettings(True, 0.1, 4))]
    assert batch.num_rows == 6
    batch.exit_layer[:] = 4
    assert state.river_feed.finish() == {"b": 4, "a": -L}


def test_warm_up_batches_bring_no_units_and_no_depths(state: State) -> None:
    state.add_request(0, new("a", 5))
    inputs = state.prepare_inputs(input_batch(("a", 1, 8), ("_dummy", 1, 0)), "p")
    assert inputs == {"positions": "p"}
    assert state.river_feed.finish() == {}


def test_in_verified_mode_a_step_is_the_backbones() -> None:
    state = State()
    state.set_up_river(BatchFeed(L, "backbone"), RiverSettings.from_config(RiverConfig(verify=4)))
    state.add_request(0, new("a", 7))
    assert state.prepare_inputs(input_batch(("a", 1, 8)), "p") == {"positions": "p"}
    assert state.river_feed.finish() == {}


def test_a_preempted_request_comes_back_with_its_first_prompt(state: State) -> None:
    state.add_request(0, new("a", 4))
    state.prepare_inputs(input_batch(("a", 1, 4)), None)["river_batch"].exit_layer[:] = 3
    state.river_feed.finish()
    state.add_request(1, new("a", 6))
    batch = state.prepare_inputs(input_batch(("a", 6, 0)), None)["river_batch"]
    assert [(u.start, u.min_layers, u.forced) for u in batch.units] == [(4, 3, True), (5, 2, False)]


def test_a_request_that_ended_is_unknown_again(state: State) -> None:
    state.add_request(0, new("a", 4))
    state.prepare_inputs(input_batch(("a", 1, 4)), None)["river_batch"].exit_layer[:] = 3
    state.river_feed.finish()
    state.forget_river({"a"})
    assert "river_batch" not in state.prepare_inputs(input_batch(("a", 1, 4)), None)
    state.add_request(0, new("a", 4))
    batch = state.prepare_inputs(input_batch(("a", 1, 4)), None)["river_batch"]
    assert batch.units == [free(0)]


def test_vllms_state_and_batch_have_what_the_mixin_uses() -> None:
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState

    cls = river_model_state_cls()
    assert issubclass(cls, DefaultModelState)
    assert river_model_state_cls() is cls
    assert cls.add_request is not DefaultModelState.add_request
    assert cls.prepare_inputs is not DefaultModelState.prepare_inputs
    names = {"req_ids", "num_reqs", "query_start_loc_np", "num_computed_tokens_np"}
    assert names <= set(InputBatch.__dataclass_fields__)
