"""Chooses candidates for a target: policies that are predicted to keep it, safest first.

Policies are of two kinds: one exit layer for all tokens, and one τ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from river_vllm.calibrate.bounds import prompts_needed
from river_vllm.calibrate.observer import Measured
from river_vllm.request import RiverSettings

QUANTILES = np.concatenate((np.linspace(0.02, 0.98, 25), [0.99, 0.995, 0.999]))
"""Quantiles of the similarities that are tried as thresholds."""
SHARES = (0.4, 0.6, 0.8, 0.95)
"""Predicted losses of the candidates, as shares of the limit, safest first."""
LOWEST_SHARE = 0.1
NEVER = 1.0 - 1e-9
"""A τ below 1 that no similarity exceeds (as float32 it is 1.0). Rows of the backbone's own pass
are then routed and so observed, but none leaves."""


@dataclass(frozen=True, slots=True)
class Policy:
    """When a token leaves: τ and the fewest backbone layers, as in ``RiverConfig``."""

    threshold: float
    min_layers: int

    @classmethod
    def backbone(cls) -> Policy:
        return cls(NEVER, 1)

    def settings(self) -> RiverSettings:
        return RiverSettings(True, self.threshold, self.min_layers)

    def exit_layers(self, similarity: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
        """Exit layers of tokens with these similarities, L where a token never leaves.

        The effect of an exit's K/V on the similarities of later tokens is left out.

        Args:
            similarity: s after 1 … L−1 layers on the backbone, float32 ``[tokens, L − 1]``.
        """
        layers = similarity.shape[1] + 1
        if self.threshold <= -1.0:
            return np.full(len(similarity), self.min_layers, dtype=np.int16)
        leaves = similarity > np.float32(self.threshold)
        leaves[:, : self.min_layers - 1] = False
        first = np.where(leaves.any(axis=1), leaves.argmax(axis=1) + 1, layers)
        found: npt.NDArray[np.int16] = first.astype(np.int16)
        return found


@dataclass(frozen=True, slots=True)
class Prediction:
    """A policy's predicted mean exit layer, and share of tokens unlike the backbone's."""

    policy: Policy
    mean_exit_layer: float
    loss: float


def predictions(
    similarity: npt.NDArray[np.float32], forced: Mapping[int, Measured]
) -> list[Prediction]:
    """Predict the result of each policy from passes in which all tokens leave after one layer.

    The loss of a token includes the effect of its predecessors' K/V, since they left after the same
    layer. Losses are interpolated between the measured layers, and 0 after the last layer.

    Args:
        similarity: of the backbone's pass, ``[tokens, L − 1]``.
        forced: the passes, by their layer (1 … L − 1).
    """
    tokens, num_layers = len(similarity), similarity.shape[1] + 1
    layers = [*sorted(forced), num_layers]
    measured = [~forced[layer].agrees for layer in layers[:-1]]
    measured.append(np.zeros(tokens, dtype=np.bool_))
    every = np.arange(num_layers + 1)
    weights = np.transpose([np.interp(every, layers, unit) for unit in np.eye(len(layers))])
    losses = weights @ np.array(measured, dtype=np.float64)
    found = []
    for policy in policies(similarity):
        exits = policy.exit_layers(similarity)
        loss = losses[exits, np.arange(tokens)].mean()
        found.append(Prediction(policy, float(exits.mean()), float(loss)))
    return found


def limit_shares(limit: float, texts: int, delta: float) -> tuple[float, ...]:
    """The shares of the limit for a test on ``texts`` texts.

    The test ends at the first candidate that does not pass. If the texts are too few to show that
    the first share is below the limit, smaller shares come before it.
    """
    found = list(SHARES)
    while found[0] > LOWEST_SHARE and texts < prompts_needed(limit, found[0], delta):
        found.insert(0, found[0] / 2)
    return tuple(found)


def candidates(
    predicted: Sequence[Prediction], limit: float, shares: Sequence[float], scale: float = 1.0
) -> list[Prediction]:
    """Candidates in the order of the test: for each share of the limit, the shallowest policy that
    is predicted to lose no more.

    Args:
        scale: the factor by which measured losses exceeded predicted ones.
    """
    found: list[Prediction] = []
    for share in shares:
        within = [p for p in predicted if scale * p.loss <= share * limit]
        best = min(within, key=lambda p: (p.mean_exit_layer, p.loss), default=None)
        if best is not None and best not in found:
            found.append(best)
    # If no policy is predicted to keep the target, the nearest one is tested all the same.
    return found or [min(predicted, key=lambda p: p.loss)]


def policies(similarity: npt.NDArray[np.float32]) -> Iterator[Policy]:
    """Every policy that is considered."""
    num_layers = similarity.shape[1] + 1
    for layer in range(1, num_layers):
        yield Policy(-1.0, layer)
    for floor in floors(num_layers):
        for threshold in np.unique(np.quantile(similarity[:, floor - 1 :], QUANTILES).round(4)):
            if -1.0 < threshold < 1.0:
                yield Policy(float(threshold), floor)


def floors(num_layers: int) -> list[int]:
    """Values of ``min_layers`` to try: each of the first, then ever fewer."""
    found = [1]
    while (following := max(found[-1] + 1, round(found[-1] * 1.3))) < num_layers:
        found.append(following)
    return found
