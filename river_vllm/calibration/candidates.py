"""Policies worth trying: one exit layer, one τ, or a threshold of each layer's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from river_vllm.calibration.bounds import prompts_wanted
from river_vllm.calibration.landscape import Landscape, Prediction
from river_vllm.calibration.policy import Policy
from river_vllm.calibration.target import Target

QUANTILES = np.concatenate((np.linspace(0.02, 0.98, 25), [0.99, 0.995, 0.999]))
NEVER_HERE = 2.0
"""An offset with which no similarity passes any τ above −1."""
LADDER = (0.4, 0.6, 0.8, 0.95)
"""Shares of the limit that the candidates are predicted to take, safest first."""
LOWEST = 0.1
"""The smallest share that few texts lead to."""
DEPTH_LADDER = (0.85, 0.91, 0.97)


def floors(num_layers: int) -> list[int]:
    """``min_layers`` to try: every one while they are few, then ever coarser."""
    found = [1]
    while (following := max(found[-1] + 1, round(found[-1] * 1.3))) < num_layers:
        found.append(following)
    return found


def policies(landscape: Landscape) -> Iterator[Policy]:
    """Every candidate."""
    for floor in range(1, landscape.num_layers):
        yield Policy(-1.0, floor)
    similarity = landscape.similarity
    for floor in floors(landscape.num_layers):
        seen = similarity[:, floor - 1 :]
        for threshold in np.unique(np.quantile(seen, QUANTILES).round(4)):
            if -1.0 < threshold < 1.0:
                yield Policy(float(threshold), floor)
        for quantile in QUANTILES:
            yield from _layered(np.quantile(seen, quantile, axis=0), floor)
    yield from _equal_risk(landscape)


def _layered(limits: npt.NDArray[np.float64], floor: int) -> Iterator[Policy]:
    """Thresholds after ``floor`` … L−1 layers, as one τ (their median) and offsets."""
    usable = np.isfinite(limits)
    if not usable.any():
        return
    threshold = round(float(np.median(limits[usable])), 4)
    if not -1.0 < threshold < 1.0:
        return
    own = np.where(usable, np.clip(limits - threshold, -NEVER_HERE, NEVER_HERE), NEVER_HERE)
    offsets = np.concatenate((np.full(floor - 1, NEVER_HERE), own))
    yield Policy(threshold, floor, tuple(float(value) for value in offsets.round(4)))


def _equal_risk(landscape: Landscape) -> Iterator[Policy]:
    """After each layer, the lowest threshold at which those who leave cost no more than r in the
    mean; r is the dial."""
    similarity, kl = landscape.similarity, landscape.kl
    tokens, decisions = similarity.shape
    order = np.argsort(-similarity, axis=0)
    sorted_similarity = np.take_along_axis(similarity, order, axis=0)
    leaving = np.arange(1, tokens + 1)[:, None]
    risk = np.cumsum(np.take_along_axis(kl[1:-1].T, order, axis=0), axis=0) / leaving
    fewest = max(8, tokens // 100)
    risk[: fewest - 1] = np.inf
    for limit in kl[1].mean() * np.linspace(0.02, 1.2, 40):
        fits = risk <= limit
        last = tokens - 1 - np.argmax(fits[::-1], axis=0)
        limits = np.where(fits.any(axis=0), sorted_similarity[last, np.arange(decisions)], np.inf)
        yield from _layered(limits, 1)


def shares(target: Target, texts: int, delta: float) -> tuple[float, ...]:
    """The ladder for a test on ``texts`` texts: where they are too few to show its first rung it
    begins below, for the test ends at the first candidate that does not pass."""
    if target.metric == "depth":
        return DEPTH_LADDER
    found = list(LADDER)
    while found[0] > LOWEST and texts < prompts_wanted(target.limit, found[0], delta):
        found.insert(0, found[0] / 2)
    return tuple(found)


def ladder(
    landscape: Landscape, target: Target, rungs: Sequence[float], scale: float = 1.0
) -> list[Prediction]:
    """Candidates in the order in which they are to be tested, from the safest on.

    ``rungs`` are shares of the target's limit, ``scale`` is what predictions have turned out to be
    too small by.

    For a quality target each is the shallowest that is predicted to take a share of the limit;
    for a depth target the one of least divergence.
    """
    predictions = [landscape.predict(policy) for policy in policies(landscape)]
    found: list[Prediction] = []
    for share in rungs:
        within = [p for p in predictions if scale * p.loss <= share * target.limit]
        if not within:
            continue
        if target.metric == "depth":
            best = min(within, key=lambda p: (p.kl, p.mean_exit_layer))
        else:
            best = min(within, key=lambda p: (p.mean_exit_layer, p.loss))
        if all(best.policy != earlier.policy for earlier in found):
            found.append(best)
    # Where nothing is predicted to keep the target, the nearest is tested all the same.
    return found or [min(predictions, key=lambda p: p.loss)]


def frontier(landscape: Landscape) -> dict[str, list[Prediction]]:
    """For people: of each kind of policy, those that no other of the kind beats in both depth and
    divergence, by depth."""
    kinds: dict[str, list[Prediction]] = {"fixed layer": [], "one τ": [], "per layer": []}
    for policy in policies(landscape):
        kind = "fixed layer" if policy.threshold <= -1.0 else "one τ"
        kind = kind if policy.layer_offsets is None else "per layer"
        kinds[kind].append(landscape.predict(policy))
    return {kind: _undominated(found) for kind, found in kinds.items()}


def _undominated(predictions: list[Prediction]) -> list[Prediction]:
    found: list[Prediction] = []
    for prediction in sorted(predictions, key=lambda p: (p.mean_exit_layer, p.kl)):
        if not found or prediction.kl < found[-1].kl:
            found.append(prediction)
    return found
