"""Drafts, LM head, sampling and router on a GPU: no mixed devices, and how often the host waits.

A number here is what a pass costs in waits. Whoever raises one has to have a reason.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from river_vllm.kernels import groups
from river_vllm.kernels.groups import GroupedWeight, by_blocks
from river_vllm.kernels.others import DequantizeKernel
from river_vllm.model.forward import Forward
from river_vllm.model.head import RiverHeadMethod, some_outputs
from river_vllm.modes.verified.draft import joined, pick
from river_vllm.step.router import Router, by_torch, transition_similarity
from river_vllm.step.table import Current, Pass, Span, StepTable
from river_vllm.weights.hqq import STEPS, quantize_hqq
from tests.cuda.fake import GPU, fake_gpu

ROWS, HIDDEN, VOCABULARY, L = 5, 128, 8192, 6


def metadata(**options: Any) -> Any:
    """vLLM's sampling metadata of a batch of 8."""
    given = {"temperature": torch.rand(8, device=GPU), "generators": {}}
    return SimpleNamespace(**given | {"top_k": None, "top_p": None} | options)


@pytest.mark.parametrize("sampled", [[], list(range(ROWS))])
@pytest.mark.parametrize("generators", [{}, {9: torch.Generator()}])
def test_picking(sampled: list[int], generators: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens and confidences of several passes are read at once."""
    with fake_gpu(monkeypatch) as waits:
        rows, picks = torch.arange(ROWS, device=GPU), []
        for _ in range(3):
            logits = torch.rand(ROWS, VOCABULARY, device=GPU)
            picks.append(pick(logits, rows, metadata(generators=generators), sampled))
        assert picks[0].tokens.device == GPU and picks[0].confidence.shape == (ROWS,)
        assert waits.count == 0
        tokens, _ = joined(picks).read()
        assert len(tokens) == 3 * ROWS
        assert waits.count == 1


@pytest.mark.parametrize("kind", ["backbone", "river", "draft"])
def test_an_lm_head_makes_logits_without_a_wait(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gpu(monkeypatch) as waits:
        weight = torch.rand(VOCABULARY, HIDDEN, device=GPU).bfloat16()
        current = Current(L)
        head = RiverHeadMethod(current, lambda w: expanded(w), some_outputs)
        layer: Any = SimpleNamespace(weight=torch.nn.Parameter(weight, requires_grad=False))
        head._packed = expanded(weight)
        current.due = Pass(StepTable(L, [1] * ROWS, [1.0] * ROWS, [L] * ROWS), (), {}, head=kind)
        monkeypatch.setattr(
            "vllm.model_executor.layers.vocab_parallel_embedding.dispatch_unquantized_gemm",
            lambda: lambda layer, x, weight, bias: torch.nn.functional.linear(x, weight, bias),
        )
        logits = head.apply(layer, torch.rand(ROWS, HIDDEN, device=GPU).bfloat16())
        assert logits.device == GPU and logits.shape == (ROWS, VOCABULARY)
        assert waits.count == 0


def expanded(weight: torch.Tensor) -> Any:
    """A 4-bit weight on the GPU, whatever its values."""
    rows, columns = weight.shape
    scales = torch.rand(rows, columns // 32, device=GPU)
    codes = torch.zeros(rows, columns, dtype=torch.uint8, device=GPU)
    spec: Any = SimpleNamespace(dtype=torch.bfloat16)
    return DequantizeKernel().pack(GroupedWeight(codes, scales, scales), spec)


def test_a_decision_waits_for_similarities_and_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the similarities; a layer before the first decision and one without rows never. Where
    rows leave, three lists of rows are copied to the device."""
    with fake_gpu(monkeypatch) as waits:
        router = Router(by_torch(transition_similarity))
        table = StepTable(L, [1] * 3, [0.5, 0.5, -1.0], [2, 3, 2], device=GPU)
        counts = []
        for layer in range(L):
            hidden = torch.rand(3, HIDDEN, device=GPU).bfloat16()
            router.decide(table, layer, hidden, torch.rand(3, HIDDEN, device=GPU).bfloat16())
            counts.append(waits.count)
        # Similarity 0 is above no τ but −1.
        assert table.exit_layer.tolist() == [-1, -1, 2]
        assert np.diff(counts).tolist() == [0, 4, 1, 1, 1]
        assert table.river_rows is not None and table.river_rows.device == GPU


def test_the_first_of_several_draft_passes_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are copied to the device. Later passes make theirs in device memory."""

    def create(found: Any, vllm_config: Any, slot_mapping: Any) -> Any:
        return SimpleNamespace(attn_metadata=found, slots=slot_mapping)

    monkeypatch.setattr("river_vllm.model.forward.create_forward_context", create)
    with fake_gpu(monkeypatch) as waits:
        group = SimpleNamespace(layer_names=["layer"], build_metadata=lambda told: told)
        blocks = SimpleNamespace(gpu=torch.zeros(8, 4, dtype=torch.int32, device=GPU))
        table = SimpleNamespace(block_size=16, block_table=blocks)
        runner: Any = SimpleNamespace(
            device=GPU,
            vllm_config=None,
            attn_groups=[[group]],
            input_batch=SimpleNamespace(block_table=[table]),
            input_ids=SimpleNamespace(gpu=torch.zeros(1, dtype=torch.int32, device=GPU)),
            positions=torch.zeros(1, dtype=torch.int64, device=GPU),
            uses_mrope=False,
            supports_mm_inputs=False,
            enable_prompt_embeds=False,
            get_model=lambda: SimpleNamespace(river=SimpleNamespace(num_layers=L)),
        )
        forward = Forward(runner)
        tokens = torch.tensor([1, 2, 3], device=GPU)
        due = forward.decode([Span(0, 4, 1), Span(1, 9, 1), Span(2, 3, 1)], tokens, 0, "draft")
        for one in (due, forward.following(due, tokens)):
            assert all(v is None or v.device == GPU for v in one.inputs.values())
            with forward._context(one):
                pass
        assert waits.count == 1


def test_a_weight_is_quantised_in_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-quadratic quantisation waits once a step, and once a block."""
    monkeypatch.setattr(groups, "BLOCK", 1 << 10)
    with fake_gpu(monkeypatch) as waits:
        quantize_hqq(torch.rand(256, 128, device=GPU), 64)
        assert waits.count == STEPS
        sizes: list[int] = []
        by_blocks(
            torch.empty(4096, 1 << 16, device=GPU, dtype=torch.bfloat16),
            lambda block: sizes.append(len(block)) or quantize_hqq(block[:1], 64),  # type: ignore
        )
        assert sizes == [1024] * 4
