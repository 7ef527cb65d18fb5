"""Which head makes a step's logits, and the search for the candidates that are made exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from river_vllm.errors import UnsupportedModelError
from river_vllm.model import head as module
from river_vllm.model.head import COLUMN, install_river_head, largest
from river_vllm.step.table import Current
from tests.unit.model.test_linear import Packed


def model_and_states() -> tuple[Any, torch.Tensor]:
    """A model of an LM head alone, and three rows for it."""
    model: Any = nn.Module()
    head = model.lm_head = ParallelLMHead(64, 32, params_dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    head.weight.data = torch.randn(head.weight.shape, generator=generator).bfloat16()
    x = torch.randn(3, 32, generator=generator).bfloat16()
    return model, x


@pytest.mark.usefixtures("vllm_world")
def test_the_pass_says_which_head_makes_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CANDIDATES", 4)
    model, x = model_and_states()
    head = model.lm_head
    four_bit = Packed(head.weight.detach()).apply(x, None)
    current = Current(2)
    install_river_head(model, current, lambda _: Packed)
    head.quant_method.process_weights_after_loading(head)
    logits = {}
    for name in ("backbone", "river", "draft"):
        current.due.head = name
        logits[name] = head.quant_method.apply(head, x)
    exact = x.float() @ head.weight.float().t()
    # One rounding to bf16 of a sum in float32.
    torch.testing.assert_close(logits["backbone"].float(), exact, rtol=2**-7, atol=2**-7)
    assert torch.equal(logits["draft"], four_bit)
    best = four_bit.topk(4, dim=-1).indices
    found = logits["river"].float().gather(1, best)
    torch.testing.assert_close(found, exact.gather(1, best), rtol=2**-7, atol=2**-7)
    assert torch.equal(logits["river"].scatter(1, best, 0.0), four_bit.scatter(1, best, 0.0))


def test_a_model_without_a_plain_head_has_no_place_for_it() -> None:
    with pytest.raises(UnsupportedModelError, match="--river-lm-head"):
        install_river_head(nn.Module(), Current(2), lambda _: Packed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [40, 64 * COLUMN, 200 * COLUMN + 7])
def test_it_finds_what_a_search_of_everything_finds(size: int, dtype: torch.dtype) -> None:
    rows = 5
    logits = torch.randn(rows, size, generator=torch.Generator().manual_seed(size)).to(dtype)
    found = largest(logits, 32)
    assert found.shape == (rows, 32)
    assert all(len(set(row)) == 32 for row in found.tolist())
    # bf16 has ties, and either of two equal logits may be taken.
    assert torch.equal(logits.gather(1, found), logits.topk(32, dim=-1).values)
    columns = 200
    logits = torch.zeros(1, columns * COLUMN + 3)
    wanted = [7, 7 + columns, 7 + 5 * columns, columns * COLUMN + 2]
    logits[0, wanted] = 1.0
    assert sorted(largest(logits, 4).tolist()[0]) == wanted, "they may share a column"
