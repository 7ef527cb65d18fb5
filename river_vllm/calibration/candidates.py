"""Candidates for a target: policies that are predicted to keep it, from the safest on.

Policies are of three kinds: one exit layer for all tokens, one τ, and a threshold of each layer's
own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from river_vllm.calibration.bounds import prompts_needed
from river_vllm.calibration.exit_costs import ExitCosts, Prediction
from river_vllm.calibration.policy import Policy
from river_vllm.calibration.target import Target

QUANTILES = np.concatenate((np.linspace(0.02, 0.98, 25), [0.99, 0.995, 0.999]))
"""Of the similarities, where thresholds are tried."""
NEVER_HERE = 2.0
"""An offset with which no similarity exceeds any τ above −1."""
SHARES = (0.4, 0.6, 0.8, 0.95)
"""Of the target's limit, losses that candidates are predicted to have, safest first."""
LOWEST_SHARE = 0.1
DEPTH_SHARES = (0.85, 0.91, 0.97)


def limit_shares(target: Target, texts: int, delta: float) -> tuple[float, ...]:
    """The shares of the limit for a test on ``texts`` texts.

    The test ends at the first candidate that does not pass, so where the texts are too few to show
    that the first share is below the limit, smaller ones come before it.
    """
    if target.metric == "depth":
        return DEPTH_SHARES
    found = list(SHARES)
    while found[0] > LOWEST_SHARE and texts < prompts_needed(target.limit, found[0], delta):
        found.insert(0, found[0] / 2)
    return tuple(found)


def candidates(
    costs: ExitCosts, target: Target, shares: Sequence[float], scale: float = 1.0
) -> list[Prediction]:
    """Candidates in the order in which they are to be tested.

    For each share of the target's limit it is the shallowest policy that is predicted to lose no
    more, or, for a depth target, the one of least divergence.

    Args:
        scale: the factor by which measured losses exceeded predicted ones.
    """
    predictions = [costs.predict(policy) for policy in policies(costs)]
    found: list[Prediction] = []
    for share in shares:
        within = [p for p in predictions if scale * p.loss <= share * target.limit]
        if not within:
            continue
        if target.metric == "depth":
            best = min(within, key=lambda p: (p.kl, p.mean_exit_layer))
        else:
            best = min(within, key=lambda p: (p.mean_exit_layer, p.loss))
        if all(best.policy != earlier.policy for earlier in found):
            found.append(best)
    # If no policy is predicted to keep the target, the nearest one is tested all the same.
    return found or [min(predictions, key=lambda p: p.loss)]


def policies(costs: ExitCosts) -> Iterator[Policy]:
    """Every policy that is considered."""
    for layer in range(1, costs.num_layers):
        yield Policy(-1.0, layer)
    for floor in floors(costs.num_layers):
        similarity = costs.similarity[:, floor - 1 :]
        for threshold in np.unique(np.quantile(similarity, QUANTILES).round(4)):
            if -1.0 < threshold < 1.0:
                yield Policy(float(threshold), floor)
        for quantile in QUANTILES:
            yield from _layer_thresholds(np.quantile(similarity, quantile, axis=0), floor)
    yield from _equal_cost(costs)


def floors(num_layers: int) -> list[int]:
    """Values of ``min_layers`` to try: each of the first, then ever fewer."""
    found = [1]
    while (following := max(found[-1] + 1, round(found[-1] * 1.3))) < num_layers:
        found.append(following)
    return found


def _layer_thresholds(thresholds: npt.NDArray[np.float64], floor: int) -> Iterator[Policy]:
    """Thresholds after ``floor`` … L−1 layers as τ, their median, and offsets to it."""
    finite = np.isfinite(thresholds)
    if not finite.any():
        return
    threshold = round(float(np.median(thresholds[finite])), 4)
    if not -1.0 < threshold < 1.0:
        return
    own = np.where(finite, np.clip(thresholds - threshold, -NEVER_HERE, NEVER_HERE), NEVER_HERE)
    offsets = np.concatenate((np.full(floor - 1, NEVER_HERE), own))
    yield Policy(threshold, floor, tuple(float(value) for value in offsets.round(4)))


def _equal_cost(costs: ExitCosts) -> Iterator[Policy]:
    """After each layer the lowest threshold at which the divergence of those that leave is on
    average no more than some limit, the same for all layers; for several limits."""
    similarity, kl = costs.similarity, costs.kl
    tokens, decisions = similarity.shape
    order = np.argsort(-similarity, axis=0)
    falling = np.take_along_axis(similarity, order, axis=0)
    leaving = np.arange(1, tokens + 1)[:, None]
    mean = np.cumsum(np.take_along_axis(kl[1:-1].T, order, axis=0), axis=0) / leaving
    # The mean of very few tokens says little.
    mean[: max(8, tokens // 100) - 1] = np.inf
    for limit in kl[1].mean() * np.linspace(0.02, 1.2, 40):
        fits = mean <= limit
        last = tokens - 1 - np.argmax(fits[::-1], axis=0)
        found = np.where(fits.any(axis=0), falling[last, np.arange(decisions)], np.inf)
        yield from _layer_thresholds(found, 1)
