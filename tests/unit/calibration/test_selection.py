"""Candidates and their tests, on a made-up model whose truth is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from river_vllm.calibration.candidates import (
    DEPTH_SHARES,
    LOWEST_SHARE,
    SHARES,
    candidates,
    floors,
    limit_shares,
    policies,
)
from river_vllm.calibration.certify import Trial, fixed_sequence, run_test
from river_vllm.calibration.exit_costs import ExitCosts
from river_vllm.calibration.policy import Policy
from river_vllm.calibration.target import Target, prompt_losses
from tests.unit.calibration.support import LAYERS, World

AGREEMENT = Target("agreement", 0.97, LAYERS)
KL = Target("kl", 0.02, LAYERS)
DEPTH = Target("depth", 6.0, LAYERS)


def _costs(world: World, target: Target) -> ExitCosts:
    forced = {layer: world.measure(Policy(-1.0, layer)) for layer in (1, 3, 6, 9)}
    return ExitCosts(world.measure(None), forced, target)


@pytest.fixture(scope="module")
def pilot() -> World:
    return World(64)


@pytest.mark.parametrize("target", [AGREEMENT, KL, DEPTH])
def test_prediction_of_a_measured_layer_is_the_measurement(pilot: World, target: Target) -> None:
    policy = Policy(-1.0, 6)
    predicted = _costs(pilot, target).predict(policy)
    measured = pilot.measure(policy)
    assert predicted.mean_exit_layer == 6.0
    # Few tokens disagree: the chance of it, given the divergence, is what is predicted.
    tolerance = 0.15 if target.metric == "agreement" else 1e-6
    assert predicted.loss == pytest.approx(target.token_loss(measured).mean(), rel=tolerance)
    assert predicted.kl == pytest.approx(measured.kl.mean(), rel=1e-5)


def test_choosing_does_not_flatter() -> None:
    """The best of hundreds of candidates on a small pilot costs elsewhere what was predicted, in
    the mean over pilots. (Counting the pilot's few disagreements would promise 13 % too much.)"""
    truth = World(1500, seed=777)
    ratios = []
    for seed in range(12):
        chosen = candidates(_costs(World(48, seed=seed), AGREEMENT), AGREEMENT, SHARES)[-2]
        risk = truth.risk(chosen.policy.exit_layers(truth.similarity.astype(np.float32)))
        ratios.append(risk.mean() / chosen.loss)
    assert 0.85 < np.mean(ratios) < 1.05


def test_prediction_between_measured_layers_is_near_the_truth(pilot: World) -> None:
    for policy in (Policy(-1.0, 4), Policy(0.8, 2), Policy(0.85, 5)):
        predicted, measured = _costs(pilot, KL).predict(policy), pilot.measure(policy)
        assert predicted.mean_exit_layer == pytest.approx(measured.exit_layer.mean())
        assert predicted.kl == pytest.approx(measured.kl.mean(), rel=0.02)


def test_candidates_are_of_both_kinds_and_valid(pilot: World) -> None:
    found = list(policies(_costs(pilot, KL)))
    assert {policy.min_layers for policy in found} > {1, 2, LAYERS - 1}
    assert all(-1.0 <= policy.threshold < 1.0 for policy in found)
    assert floors(LAYERS)[:3] == [1, 2, 3]


@pytest.mark.parametrize("target", [AGREEMENT, KL])
def test_candidates_go_from_safe_to_shallow(pilot: World, target: Target) -> None:
    found = candidates(_costs(pilot, target), target, SHARES)
    assert 2 <= len(found) <= len(SHARES)
    for a, b in itertools.pairwise(found):
        assert a.loss <= b.loss <= target.limit
        assert a.mean_exit_layer >= b.mean_exit_layer


def test_few_texts_begin_with_more_careful_candidates(pilot: World) -> None:
    strict = Target("agreement", 0.98, LAYERS)
    assert limit_shares(strict, 1000, 0.1) == SHARES
    few = limit_shares(strict, 227, 0.1)
    assert few == (0.2, *SHARES)
    assert min(limit_shares(strict, 20, 0.1)) == LOWEST_SHARE
    assert limit_shares(DEPTH, 20, 0.1) == DEPTH_SHARES
    costs = _costs(pilot, strict)
    careful = candidates(costs, strict, few)[0]
    assert careful.loss <= 0.2 * strict.limit
    assert careful.mean_exit_layer >= candidates(costs, strict, SHARES)[0].mean_exit_layer


def test_similarity_is_used_where_it_tells_something(pilot: World) -> None:
    """In this model settled states are cheap to let go: some candidate beats every fixed layer."""
    costs = _costs(pilot, KL)
    found = candidates(costs, KL, SHARES)
    fixed = [costs.predict(Policy(-1.0, layer)) for layer in range(1, LAYERS)]
    assert any(
        all(f.loss > one.loss or f.mean_exit_layer > one.mean_exit_layer for f in fixed)
        for one in found
    )


def test_a_depth_target_spends_what_is_allowed_on_quality(pilot: World) -> None:
    found = candidates(_costs(pilot, DEPTH), DEPTH, DEPTH_SHARES)
    assert all(one.mean_exit_layer <= DEPTH.value for one in found)
    assert found[-1].mean_exit_layer > 0.8 * DEPTH.value


def _run(world: World, policy: Policy, target: Target, texts: int = 320) -> Trial:
    return run_test(policy, world.measure, texts, 64, target, 0.1)


def test_a_good_policy_passes_early_and_a_bad_one_stops_half_way() -> None:
    world = World(320, seed=1)
    good = _run(world, Policy(-1.0, LAYERS - 1), AGREEMENT)
    assert good.passed
    assert len(good.losses) < 320
    bad = _run(world, Policy(-1.0, 1), AGREEMENT)
    assert not bad.passed
    assert len(bad.losses) == 192
    assert bad.loss > AGREEMENT.limit
    assert good.p_value <= 0.1 < bad.p_value


def test_all_texts_if_asked() -> None:
    world = World(320, seed=1)
    policy = Policy(-1.0, LAYERS - 1)
    whole = run_test(policy, world.measure, 320, 64, AGREEMENT, 0.1, to_the_end=True)
    assert len(whole.losses) == 320
    assert whole.mean_exit_layer == LAYERS - 1
    losses = prompt_losses(world.measure(policy), AGREEMENT.token_loss(world.measure(policy)))
    assert whole.losses == pytest.approx(list(losses.values()))


def test_sequence_ends_with_the_first_that_does_not_pass() -> None:
    world = World(320, seed=1)
    layers = [11, 10, 1, 9]
    tests = fixed_sequence(
        [Policy(-1.0, layer) for layer in layers], lambda p: _run(world, p, AGREEMENT)
    )
    assert [t.policy.min_layers for t in tests] == [11, 10, 1]
    assert [t.passed for t in tests] == [True, True, False]


def test_guarantee_holds_over_many_calibrations() -> None:
    """The whole procedure: candidates from a pilot, tested on other texts. The chosen policy's
    true loss is above the limit in at most δ of the calibrations (three standard errors)."""
    delta, runs, target = 0.2, 60, Target("agreement", 0.95, LAYERS)
    truth = World(4000, seed=999)
    wrong = chosen = 0
    for seed in range(runs):
        pilot = _costs(World(24, seed=seed), target)
        found = candidates(pilot, target, limit_shares(target, 160, delta))
        world = World(160, seed=10_000 + seed)
        passed = [
            test
            for test in fixed_sequence(
                [prediction.policy for prediction in found],
                lambda p, world=world: run_test(p, world.measure, 160, 32, target, delta),
            )
            if test.passed
        ]
        if passed:
            chosen += 1
            exits = passed[-1].policy.exit_layers(truth.similarity.astype(np.float32))
            wrong += truth.risk(exits).mean() > target.limit
    assert chosen > runs / 2
    assert wrong / runs <= delta + 3 * (delta * (1 - delta) / runs) ** 0.5
