"""A made-up model (similarities and costs of tokens, no engine), and a calibrated config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from river_vllm.calibrate.passes import Measured, Policy, Text

LAYERS = 12


def calibrated(**changes: Any) -> dict[str, Any]:
    return {
        "threshold": 0.9,
        "min_layers": 2,
        "quantizer": "hqq",
        "calibration": {
            "model": {"name": "m", "config_sha256": "a", "weights_sha256": "b"},
            "chosen": {"threshold": 0.9, "min_layers": 2},
            "settings": {"quantizer": "hqq", "group_size": 128},
            "prompts": {"source": "x.jsonl", "pilot": 64, "tested": 256, "tokens": 16},
            "target": {"metric": "agreement", "value": 0.98, "delta": 0.1},
            "achieved": {"agreement": 0.99, "mean_exit_layer": 3.5, "p_value": 0.05},
            "guarantee": "…",
            "date": "2026-01-01",
            "river": "0",
            "vllm": "0",
        },
        **changes,
    }


@dataclass
class World:
    """Tokens whose cost falls with depth; a settled state (high similarity) costs less."""

    texts: int
    tokens: int = 16
    seed: int = 0
    hardest: float = 0.12
    layers: int = LAYERS

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        count = self.texts * self.tokens
        self.ease = rng.random(count)
        rise = np.linspace(0.5, 0.95, self.layers - 1)
        noise = rng.normal(0, 0.01, (count, self.layers - 1))
        self.similarity = np.clip(rise + 0.05 * (self.ease[:, None] - 0.5) + noise, -1, 1)
        self.luck = rng.random(count)
        self.where = np.stack(
            [
                np.repeat(np.arange(self.texts), self.tokens),
                np.tile(np.arange(self.tokens), self.texts),
            ],
            axis=1,
        )

    def risk(self, exits: np.ndarray) -> np.ndarray:
        return self.hardest * (1 - self.ease) * (1 - exits / self.layers)

    def measure(self, policy: Policy | None, part: slice | None = None) -> Measured:
        rows = slice(None)
        if part is not None:
            rows = slice(part.start * self.tokens, part.stop * self.tokens)
        if policy is not None and policy.min_layers >= self.layers:
            rows = slice(0)  # a row that cannot leave is not observed
        similarity = self.similarity[rows].astype(np.float32)
        exits = np.full(len(similarity), self.layers, dtype=np.int16)
        if policy is not None:
            exits = policy.exit_layers(similarity)
        full = np.full(len(self.ease), self.layers)
        full[rows] = exits
        risk = self.risk(full)[rows]
        return Measured(
            tokens=self.where[rows].astype(np.int32),
            exit_layer=exits,
            agrees=self.luck[rows] >= risk,
            similarity=similarity if policy is None else None,
        )


TEXTS = [Text((1,), tuple(range(17)))] * 200


class Engine:
    """Stands for ``TeacherForcedEngine``: each text has the tokens of a made-up model."""

    def __init__(self, world: World) -> None:
        self._world = world

    def run(self, policy: Policy | None, texts: Sequence[Text], first: int = 0) -> Measured:
        return self._world.measure(policy, slice(first, first + len(texts)))
