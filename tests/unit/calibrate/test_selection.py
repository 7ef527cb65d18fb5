"""Candidates and their tests, on a made-up model whose truth is known."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from river_vllm.calibrate.certify import Trial, run_test, text_losses
from river_vllm.calibrate.passes import Measured, Policy
from river_vllm.calibrate.run import (
    SHARES,
    Calibrator,
    Prediction,
    candidates,
    pilot_layers,
    predictions,
)
from tests.unit.calibrate.support import LAYERS, TEXTS, Engine, World

LIMIT = 0.03
MEASURED = (1, 3, 6, 9)


def _predicted(world: World) -> list[Prediction]:
    similarity = world.measure(None).similarity
    assert similarity is not None
    return predictions(
        similarity, {layer: world.measure(Policy(-1.0, layer)) for layer in MEASURED}
    )


@pytest.fixture(scope="module")
def pilot() -> World:
    return World(64)


@pytest.fixture(scope="module")
def predicted(pilot: World) -> list[Prediction]:
    return _predicted(pilot)


def test_choosing_hardly_flatters() -> None:
    """The best of hundreds of candidates on a small pilot costs elsewhere little more than what was
    predicted, in the mean over pilots."""
    truth = World(1500, seed=777)
    ratios = []
    for seed in range(12):
        chosen = candidates(_predicted(World(48, seed=seed)), LIMIT, SHARES)[-2]
        risk = truth.risk(chosen.policy.exit_layers(truth.similarity.astype(np.float32)))
        ratios.append(risk.mean() / chosen.loss)
    assert 0.85 < np.mean(ratios) < 1.25


def test_candidates_go_from_safe_to_shallow(predicted: list[Prediction]) -> None:
    found = candidates(predicted, LIMIT, SHARES)
    assert 2 <= len(found) <= len(SHARES)
    for a, b in itertools.pairwise(found):
        assert a.loss <= b.loss <= LIMIT
        assert a.mean_exit_layer >= b.mean_exit_layer


def _run(world: World, policy: Policy) -> Trial:
    return run_test(policy, world.measure, 320, 64, LIMIT, 0.1)


def test_a_good_policy_passes_early_and_a_bad_one_stops_half_way() -> None:
    world = World(320, seed=1)
    good = _run(world, Policy(-1.0, LAYERS - 1))
    assert good.passed
    assert len(good.losses) < 320
    bad = _run(world, Policy(-1.0, 1))
    assert not bad.passed
    assert len(bad.losses) == 192
    assert bad.loss > LIMIT
    assert good.p_value <= 0.1 < bad.p_value


def test_a_text_counts_once() -> None:
    measured = Measured(
        tokens=np.array([[0, 5], [0, 6], [2, 3]], dtype=np.int32),
        exit_layer=np.array([2, 4, 10], dtype=np.int16),
        agrees=np.array([True, False, True]),
    )
    assert text_losses(measured) == [0.5, 0.0]


def test_guarantee_holds_over_many_calibrations() -> None:
    """The whole procedure: candidates from a pilot, tested on other texts. The chosen policy's
    true loss is above the limit in at most δ of the calibrations (three standard errors)."""
    agreement, delta, runs = 0.95, 0.2, 60
    truth = World(4000, seed=999)
    wrong = chosen = 0
    for seed in range(runs):
        engine: Any = Engine(World(184, seed=seed))
        calibrator = Calibrator(engine, lambda *_: None, lambda _: None)
        outcome = calibrator.calibrate(TEXTS[:184], 24, agreement, delta)
        assert [test.passed for test in outcome.tests[:-1]] == [True] * (len(outcome.tests) - 1)
        if outcome.chosen is not None:
            chosen += 1
            exits = outcome.chosen.policy.exit_layers(truth.similarity.astype(np.float32))
            wrong += truth.risk(exits).mean() > 1 - agreement
    assert chosen > runs / 2
    assert wrong / runs <= delta + 3 * (delta * (1 - delta) / runs) ** 0.5


@pytest.mark.parametrize("layers", [2, 3, 6, 10, 11, 30])
def test_models_of_any_depth(layers: int) -> None:
    engine: Any = Engine(World(200, layers=layers))
    calibrator = Calibrator(engine, lambda *_: None, lambda _: None)
    outcome = calibrator.calibrate(TEXTS, 40, 0.9, 0.1)
    assert list(outcome.forced) == pilot_layers(layers)
    assert outcome.chosen is not None
    assert 1.0 <= outcome.chosen.mean_exit_layer < layers
    assert len(outcome.similarity_quantiles) == layers - 1
