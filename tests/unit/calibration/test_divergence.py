"""Divergence from the backbone's distribution."""

from __future__ import annotations

import pytest
import torch

from river_vllm.calibration import divergence
from river_vllm.calibration.divergence import compare, likely_tokens


def _logits(rows: int, vocabulary: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def test_small_vocabulary_gives_the_whole_divergence() -> None:
    p, q = _logits(6, 100, 0), _logits(6, 100, 1)
    agrees, kl = compare(likely_tokens(p), q)
    expected = torch.nn.functional.kl_div(
        q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    assert kl == pytest.approx(expected, rel=1e-3)
    assert agrees.tolist() == (p.argmax(-1) == q.argmax(-1)).tolist()


def test_the_rest_as_one_is_a_lower_bound_and_near(monkeypatch: pytest.MonkeyPatch) -> None:
    p = _logits(8, 5000, 0)
    q = p + 0.3 * _logits(8, 5000, 1)
    whole = torch.nn.functional.kl_div(
        q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    _, kl = compare(likely_tokens(p), q)
    assert (kl <= whole + 1e-4).all()
    assert kl.mean() > 0.8 * whole.mean()
    monkeypatch.setattr(divergence, "LIKELY", 4)
    _, coarse = compare(likely_tokens(p), q)
    assert (coarse <= kl + 1e-4).all()


def test_equal_rows_do_not_diverge_and_ties_agree() -> None:
    logits = _logits(4, 1000, 0).bfloat16()
    logits[:, 7] = logits[:, 3] = 20.0
    agrees, kl = compare(likely_tokens(logits), logits)
    assert agrees.all()
    assert kl.max() < 1e-5
