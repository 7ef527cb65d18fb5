"""Runner V2's drafter on vLLM's own loop, with fakes of what is on the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.worker.gpu.input_batch import InputBuffers
from vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator import StandaloneARSpeculator

from river_vllm.router.plan import RowPlan
from river_vllm.verify import speculator_v2
from river_vllm.verify.speculator_v2 import RiverSpeculator, take_over

K, MOST, CONTEXT, BLOCK, VOCABULARY = 3, 4, 64, 16, 99
CPU = torch.device("cpu")


class CountingModel:
    """Says that after token t comes t + 1; its state is the token itself."""

    def __init__(self) -> None:
        self.river = SimpleNamespace(plan=RowPlan(), config=SimpleNamespace(draft_layers=2))
        self.passes: list[tuple[list[int], list[int]]] = []

    def __call__(self, input_ids: Any, positions: Any, river_batch: Any) -> torch.Tensor:
        assert (input_ids.dtype, positions.dtype) == (torch.int32, torch.int64)
        assert river_batch.covers_all_rows
        assert all(unit.forced and unit.min_layers == 2 for unit in river_batch.units)
        self.passes.append((input_ids.tolist(), positions.tolist()))
        return input_ids.float().unsqueeze(1)

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        assert self.river.plan.draft_head
        tokens = hidden.squeeze(1).long() + 1
        return torch.nn.functional.one_hot(tokens, VOCABULARY).float()


class Tables:
    """Request r owns the blocks 10 r, 10 r + 1, …"""

    cp_size, num_kv_cache_groups = 1, 1

    def compute_slot_mappings(
        self, requests: Any, starts: Any, positions: Any, padded: int, out: Any = None
    ) -> torch.Tensor:
        assert starts.tolist() == list(range(len(requests) + 1)), "one row for each request"
        blocks = requests * 10 + positions // BLOCK
        return (blocks * BLOCK + positions % BLOCK).unsqueeze(0)


@pytest.fixture
def speculator(monkeypatch: pytest.MonkeyPatch) -> Any:
    made: Any = object.__new__(StandaloneARSpeculator)
    made.input_buffers = InputBuffers(MOST, 32, CPU)
    made.idx_mapping = torch.zeros(MOST, dtype=torch.int64)
    made.temperature, made.seeds = torch.zeros(MOST), torch.zeros(MOST, dtype=torch.int64)
    made.draft_tokens = torch.zeros(MOST, K, dtype=torch.int64)
    made.arange_np = np.arange(MOST + 1, dtype=np.int32)
    made.arange_gpu = torch.arange(MOST + 1, dtype=torch.int32)
    made.last_token_indices = torch.zeros(MOST, dtype=torch.int64)
    made.expanded_positions = torch.zeros(32 + MOST, dtype=torch.int64)
    made.current_draft_step = torch.tensor(0)
    made.num_speculative_steps, made.max_model_len = K, CONTEXT
    made.draft_logits = made.acceptance_estimator = made.draft_watermarker = None
    made.use_local_argmax_reduction = False
    made.vllm_config = None
    runner = SimpleNamespace(speculator=made)
    take_over(runner)
    made.seen = []

    @contextmanager
    def context(metadata: Any, config: Any, slot_mapping: Any, **_: Any) -> Iterator[None]:
        made.seen.append((metadata, slot_mapping and slot_mapping["layer.0"].tolist()))
        yield

    def metadata(**arguments: Any) -> Any:
        count = arguments["num_reqs"]
        assert arguments["query_start_loc_np"].tolist() == list(range(count + 1))
        return made.input_buffers.seq_lens[:count].tolist()

    monkeypatch.setattr(speculator_v2, "set_forward_context", context)
    made._build_attn_metadata = metadata
    return made


def attach(speculator: Any) -> CountingModel:
    model = CountingModel()
    speculator.load_model(model)
    group = SimpleNamespace(
        supports_draft_decode_metadata_update=True, backend=None, layer_names=["layer.0"]
    )
    config = SimpleNamespace(kv_cache_groups=[SimpleNamespace(layer_names=["layer.0"])])
    speculator.set_attn(None, config, Tables(), None, [[group]])
    return model


def propose(
    speculator: Any, requests: list[int], lengths: list[int], rejected: list[int], last: list[int]
) -> list[list[int]]:
    """``last``: by request, the token that the step sampled."""
    batch = SimpleNamespace(
        num_reqs=len(requests),
        idx_mapping=torch.tensor(requests),
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        seq_lens_cpu_upper_bound=torch.tensor(lengths, dtype=torch.int32),
    )
    sampled = torch.zeros(MOST, dtype=torch.int64)
    sampled[requests] = torch.tensor(last)
    found: list[list[int]] = speculator.propose(
        *(batch, {}, {}, None, None, None),
        torch.tensor(rejected, dtype=torch.int32),
        sampled,
        *(None, torch.zeros(MOST), torch.zeros(MOST, dtype=torch.int64)),
    ).tolist()
    return found


def test_only_vllms_own_is_taken_over(speculator: Any) -> None:
    assert type(speculator) is RiverSpeculator
    assert speculator.num_extra_query_per_req == 0
    runner = SimpleNamespace(speculator=object())
    take_over(runner)
    assert type(runner.speculator) is object
    take_over(SimpleNamespace())


def test_drafts_follow_the_token_that_was_sampled(speculator: Any) -> None:
    """From the positions that rejected tokens leave, each into its own request's slots."""
    model = attach(speculator)
    assert propose(speculator, [2, 0], [20, 7], [0, 3], [50, 60]) == [[51, 52, 53], [61, 62, 63]]
    assert model.passes == [
        ([50, 60], [20, 4]),
        ([51, 61], [21, 5]),
        ([52, 62], [22, 6]),
    ]
    lengths, slots = zip(*speculator.seen, strict=True)
    assert lengths == ([21, 5], [22, 6], [23, 7])
    assert slots == ([340, 4], [341, 5], [342, 6])


def test_the_targets_layers_attend(speculator: Any) -> None:
    attach(speculator)
    assert speculator.draft_attn_layer_names == set()
    assert speculator.attn_groups is speculator.target_attn_groups
    assert speculator.info() == {"max_tokens": K, "adaptive": False}


def test_no_position_is_past_the_context(speculator: Any) -> None:
    model = attach(speculator)
    propose(speculator, [1], [CONTEXT - 1], [0], [5])
    assert [positions for _, positions in model.passes] == [[CONTEXT - 1]] * 3
    assert [lengths for lengths, _ in speculator.seen] == [[CONTEXT]] * 3


def test_the_plan_is_as_before_when_the_head_fails(speculator: Any) -> None:
    model = attach(speculator)

    def fail(hidden: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    model.compute_logits = fail  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        propose(speculator, [1], [4], [0], [5])
    assert not model.river.plan.draft_head
