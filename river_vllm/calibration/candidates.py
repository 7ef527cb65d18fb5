"""Candidates for a target: policies that are predicted to keep it, from the safest on.

Policies are of two kinds: one exit layer for all tokens, and one τ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from river_vllm.calibration.bounds import prompts_needed
from river_vllm.calibration.exit_costs import ExitCosts, Prediction
from river_vllm.calibration.policy import Policy
from river_vllm.calibration.target import Target

QUANTILES = np.concatenate((np.linspace(0.02, 0.98, 25), [0.99, 0.995, 0.999]))
"""Of the similarities, where thresholds are tried."""
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


def floors(num_layers: int) -> list[int]:
    """Values of ``min_layers`` to try: each of the first, then ever fewer."""
    found = [1]
    while (following := max(found[-1] + 1, round(found[-1] * 1.3))) < num_layers:
        found.append(following)
    return found
