"""What exits cost on a few texts, and what any policy would have cost on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from river_vllm.calibration.observer import Measured
from river_vllm.calibration.policy import Policy
from river_vllm.calibration.target import Target

BINS = 40
"""Groups of tokens of similar divergence, for the chance of disagreeing."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of a policy on the landscape's texts, mean over tokens."""

    policy: Policy
    mean_exit_layer: float
    loss: float
    """In [0, 1], the target's."""
    kl: float
    """Nats, clipped as the target's."""


class Landscape:
    """Costs of leaving after each layer, token by token.

    Measured with every token leaving after the same layer, so a token's cost includes what its
    predecessors' K/V bring along; between measured layers it is interpolated, after the last
    layer it is 0. A token's cost where its predecessors leave elsewhere is taken to be the same:
    good enough to choose candidates, which are then measured themselves.

    Args:
        backbone: the backbone's pass.
        forced: passes with every token leaving after one layer, by that layer.
        target: gives the loss.
        kl: gives the divergence.
    """

    def __init__(
        self, backbone: Measured, forced: Mapping[int, Measured], target: Target, kl: Target
    ) -> None:
        if backbone.similarity is None:
            raise ValueError("'backbone': expected the backbone's own pass")
        self.similarity = backbone.similarity
        self.num_layers = target.num_layers
        self._tokens = np.arange(len(self.similarity))
        self._loss = self._by_layer(forced, target)
        self.kl = self._by_layer(forced, kl)

    def _by_layer(self, forced: Mapping[int, Measured], target: Target) -> npt.NDArray[np.float64]:
        """Cost ``[L + 1, tokens]`` of leaving after 0 … L layers."""
        layers = sorted(forced)
        costs = np.stack([target.token_loss(forced[layer]) for layer in layers])
        if target.metric == "agreement":
            costs = _expected(costs, np.stack([forced[layer].kl for layer in layers]))
        end = 1.0 if target.metric == "depth" else 0.0
        costs = np.vstack([costs, np.full(costs.shape[1], end)])
        known = np.array([*layers, self.num_layers], dtype=np.float64)
        wanted = np.clip(np.arange(self.num_layers + 1), known[0], None)
        right = np.searchsorted(known, wanted).clip(1, len(known) - 1)
        share = ((wanted - known[right - 1]) / (known[right] - known[right - 1]))[:, None]
        found: npt.NDArray[np.float64] = (1 - share) * costs[right - 1] + share * costs[right]
        return found

    def predict(self, policy: Policy) -> Prediction:
        """Mean exit layer and cost of ``policy``."""
        exits = policy.exit_layers(self.similarity)
        return Prediction(
            policy,
            float(exits.mean()),
            float(self._loss[exits, self._tokens].mean()),
            float(self.kl[exits, self._tokens].mean()),
        )


def _expected(
    losses: npt.NDArray[np.float64], kl: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Each token's chance of another likeliest token, given its divergence.

    Few of a pilot's tokens disagree at all; how likely one was to is told by its divergence, and
    what the two have to do with each other by all tokens and layers together (means of equally
    many, made monotone).

    Args:
        losses: 0 or 1, ``[layers, tokens]``.
        kl: in nats, ``[layers, tokens]``.
    """
    order = np.argsort(kl, axis=None, kind="stable")
    parts = np.array_split(order, min(BINS, order.size))
    middles = np.array([np.median(kl.flat[part]) for part in parts])
    means = np.maximum.accumulate([losses.flat[part].mean() for part in parts])
    means *= losses.mean() / max(np.repeat(means, [len(p) for p in parts]).mean(), 1e-12)
    found: npt.NDArray[np.float64] = np.interp(kl, middles, means)
    return found
