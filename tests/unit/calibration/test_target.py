"""Targets as losses."""

from __future__ import annotations

import numpy as np
import pytest

from river_vllm.calibration.observer import Measured
from river_vllm.calibration.target import Target, prompt_losses

MEASURED = Measured(
    tokens=np.array([[0, 5], [0, 6], [2, 3], [2, 4]], dtype=np.int32),
    exit_layer=np.array([2, 4, 10, 8], dtype=np.int16),
    agrees=np.array([True, False, True, True]),
    kl=np.array([0.1, 3.0, 0.0, 0.4], dtype=np.float32),
)


@pytest.mark.parametrize(
    ("target", "losses", "limit"),
    [
        (Target("agreement", 0.98, 10), [0, 1, 0, 0], 0.02),
        (Target("kl", 0.05, 10), [0.1, 1.0, 0.0, 0.4], 0.05),
        (Target("depth", 4.0, 10), [0.2, 0.4, 1.0, 0.8], 0.4),
    ],
)
def test_losses_are_shares_and_a_prompt_counts_once(
    target: Target, losses: list[float], limit: float
) -> None:
    found = target.token_loss(MEASURED)
    assert found == pytest.approx(losses)
    assert target.limit == pytest.approx(limit)
    assert prompt_losses(MEASURED, found) == pytest.approx(
        {0: (losses[0] + losses[1]) / 2, 2: (losses[2] + losses[3]) / 2}
    )
    assert target.figure(target.limit) == pytest.approx(target.value)
