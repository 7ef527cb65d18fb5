"""Bytes of weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from server.calibrate.speed import WeightBytes

CONFIG = SimpleNamespace(
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=1000,
    num_hidden_layers=10,
)


def test_bytes_of_a_layer_and_of_the_head() -> None:
    found = WeightBytes.of(CONFIG, 64)
    weights = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128
    assert found.backbone == 2 * weights
    assert found.river == weights / 2 + weights / 64 * 4
    assert found.head == 2 * 1000 * 64


def test_speedup_is_one_at_full_depth_and_falls_with_it() -> None:
    found = WeightBytes.of(CONFIG, 64)
    assert found.speedup(10) == pytest.approx(1.0)
    assert found.speedup(1) > found.speedup(5) > 1.0
