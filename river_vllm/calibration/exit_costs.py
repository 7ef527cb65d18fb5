"""What leaving after each layer costs each token, and so what any policy would have cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from river_vllm.calibration.observer import Measured
from river_vllm.calibration.policy import Policy
from river_vllm.calibration.target import KL_CLIP, Target, clipped_kl

BINS = 40
"""Groups of tokens of similar divergence, from which the chance of a disagreement is estimated."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a policy would have given, means over tokens.

    Attributes:
        loss: the target's, in [0, 1].
        kl: KL(backbone ‖ river) in nats, each token's clipped.
    """

    policy: Policy
    mean_exit_layer: float
    loss: float
    kl: float


class ExitCosts:
    """Divergence of each token for each exit layer, from passes in which all leave after the same.

    It includes the effect of the K/V of a token's predecessors, which left after that layer too.
    Between the measured layers it is interpolated, and after the last layer it is 0. Where
    predecessors leave elsewhere it is taken to be the same: good enough to choose candidates, which
    are then measured themselves.

    Args:
        backbone: the backbone's pass.
        forced: passes with every token leaving after one layer, by that layer (1 … L − 1).
        target: what losses are computed for.
    """

    def __init__(self, backbone: Measured, forced: Mapping[int, Measured], target: Target) -> None:
        if backbone.similarity is None:
            raise ValueError("'backbone': expected the backbone's own pass")
        self.similarity = backbone.similarity
        self.num_layers = target.num_layers
        measured = {layer: clipped_kl(found) for layer, found in forced.items()}
        self.kl = _by_layer(measured, self.num_layers)
        """Clipped, in nats, after 0 … L layers, ``[L + 1, tokens]``."""
        self._tokens = np.arange(len(self.similarity))
        self._metric = target.metric
        if self._metric == "agreement":
            self._disagreement = _disagreement_by_kl(list(forced.values()))

    def predict(self, policy: Policy) -> Prediction:
        """What ``policy`` would have given."""
        exits = policy.exit_layers(self.similarity)
        kl = self.kl[exits, self._tokens]
        return Prediction(policy, float(exits.mean()), self._loss(exits, kl), float(kl.mean()))

    def loss_of(self, measured: Measured) -> float:
        """The target's mean loss of a pass over the same texts, computed as ``predict`` does."""
        return self._loss(measured.exit_layer, clipped_kl(measured))

    def _loss(self, exits: npt.NDArray[np.int16], kl: Values) -> float:
        if self._metric == "depth":
            return float(exits.mean()) / self.num_layers
        if self._metric == "kl":
            return float(kl.mean()) / KL_CLIP
        return float(np.interp(kl, *self._disagreement).mean())


def _by_layer(measured: Mapping[int, Values], num_layers: int) -> Values:
    """Costs after 0 … L layers, ``[L + 1, tokens]``, linear between the layers that were measured;
    before the first of them as after it."""
    layers = np.array([*sorted(measured), num_layers])
    costs = np.stack([measured[layer] for layer in sorted(measured)])
    costs = np.vstack([costs, np.zeros(costs.shape[1])])
    wanted = np.arange(num_layers + 1).clip(layers[0])
    right = np.searchsorted(layers, wanted).clip(1)
    share = ((wanted - layers[right - 1]) / (layers[right] - layers[right - 1]))[:, None]
    found: Values = (1 - share) * costs[right - 1] + share * costs[right]
    return found


def _disagreement_by_kl(forced: list[Measured]) -> tuple[Values, Values]:
    """A token's chance of another likeliest token by its divergence: nats, and chances.

    Few tokens of a pilot disagree at all, and how many do falls with the square root of the
    divergence, so neither counting them for each policy nor interpolating between layers would do.
    Here all tokens and measured layers count: means of equally many, made monotone.
    """
    losses = np.concatenate([~measured.agrees for measured in forced]).astype(np.float64)
    kl = np.concatenate([clipped_kl(measured) for measured in forced])
    bins = np.array_split(np.argsort(kl, kind="stable"), min(BINS, kl.size))
    medians = np.array([0.0, *(np.median(kl[members]) for members in bins)])
    means = np.maximum.accumulate([0.0, *(losses[members].mean() for members in bins)])
    expected = np.repeat(means[1:], [len(members) for members in bins]).mean()
    return medians, means * losses.mean() / max(expected, 1e-12)
