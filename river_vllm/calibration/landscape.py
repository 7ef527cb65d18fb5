"""What exits cost on a few texts, and what any policy would have cost on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
        self._target = target
        self._chance: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None
        if target.metric == "agreement":
            self._chance = _chance_by_divergence(list(forced.values()), target)
        self.kl = self._by_layer(forced, kl)
        self._loss = self._by_layer(forced, target)

    def _by_layer(self, forced: Mapping[int, Measured], target: Target) -> npt.NDArray[np.float64]:
        """Cost ``[L + 1, tokens]`` of leaving after 0 … L layers."""
        layers = sorted(forced)
        if target.metric == "agreement":
            return self._disagreement(self.kl)
        costs = np.stack([target.token_loss(forced[layer]) for layer in layers])
        end = 1.0 if target.metric == "depth" else 0.0
        costs = np.vstack([costs, np.full(costs.shape[1], end)])
        known = np.array([*layers, self.num_layers], dtype=np.float64)
        wanted = np.clip(np.arange(self.num_layers + 1), known[0], None)
        right = np.searchsorted(known, wanted).clip(1, len(known) - 1)
        share = ((wanted - known[right - 1]) / (known[right] - known[right - 1]))[:, None]
        found: npt.NDArray[np.float64] = (1 - share) * costs[right - 1] + share * costs[right]
        return found

    def _disagreement(self, kl: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        assert self._chance is not None
        found: npt.NDArray[np.float64] = np.interp(kl, *self._chance)
        return found

    def loss_of(self, measured: Measured) -> float:
        """The target's mean loss of a pass over the same texts, as ``predict`` gives it."""
        if self._chance is not None:
            return float(self._disagreement(measured.kl).mean())
        return float(self._target.token_loss(measured).mean())

    def predict(self, policy: Policy) -> Prediction:
        """Mean exit layer and cost of ``policy``."""
        exits = policy.exit_layers(self.similarity)
        return Prediction(
            policy,
            float(exits.mean()),
            float(self._loss[exits, self._tokens].mean()),
            float(self.kl[exits, self._tokens].mean()),
        )


def _chance_by_divergence(
    forced: list[Measured], target: Target
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """A token's chance of another likeliest token, by its divergence: nats, and chances.

    Few of a pilot's tokens disagree at all, and how many do falls with the square root of the
    divergence, so neither their count nor a line between layers would do. How the two hang
    together is told by all tokens and measured layers (means of equally many, made monotone).
    """
    losses = np.concatenate([target.token_loss(measured) for measured in forced])
    kl = np.concatenate([measured.kl for measured in forced])
    order = np.argsort(kl, kind="stable")
    parts = np.array_split(order, min(BINS, order.size))
    middles = np.array([0.0, *(np.median(kl[part]) for part in parts)])
    means = np.maximum.accumulate([0.0, *(losses[part].mean() for part in parts)])
    weights = np.repeat(means[1:], [len(part) for part in parts])
    return middles, means * losses.mean() / max(weights.mean(), 1e-12)
