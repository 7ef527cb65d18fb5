"""A calibration from prompts to tested settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from river_vllm.calibration.candidates import frontier, ladder, shares
from river_vllm.calibration.certify import Trial, fixed_sequence, run_test
from river_vllm.calibration.landscape import Landscape, Prediction
from river_vllm.calibration.observer import Measured
from river_vllm.calibration.passes import TeacherForcedEngine, Text
from river_vllm.calibration.policy import Policy
from river_vllm.calibration.target import Target

PORTION = 64
"""Texts that one call to the engine takes."""

DEPTHS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.85, 0.95)
"""Where every token leaves in the first passes, as shares of the layers."""

Step = Callable[[str, int], None]
"""Takes what is being done and how many texts it is over; called at the start of each part."""

Advance = Callable[[int], None]
"""Takes texts that are done."""


@dataclass(frozen=True, slots=True)
class ForcedExit:
    """Every token leaves after one layer; on the pilot prompts."""

    layer: int
    agreement: float
    kl: float
    keys: list[float] | None
    values: list[float] | None
    """Cosine of K and V with the backbone's, by layer, mean over tokens."""


@dataclass(slots=True)
class Outcome:
    """Everything that a calibration found."""

    target: Target
    delta: float
    pilot: list[Text]
    tested: list[Text]
    left_out: int
    """Prompts whose answer is too short to have a decode step."""
    forced: list[ForcedExit] = field(default_factory=list)
    frontier: dict[str, list[Prediction]] = field(default_factory=dict)
    ladder: list[Prediction] = field(default_factory=list)
    scale: float = 1.0
    """What predictions had to be multiplied by."""
    tests: list[Trial] = field(default_factory=list)
    similarity_quantiles: list[list[float]] = field(default_factory=list)
    """5 %, 50 % and 95 % of s after 1 … L−1 layers."""

    @property
    def chosen(self) -> Trial | None:
        """The best candidate that passed: the last, or the deepest for a depth target."""
        passed = [test for test in self.tests if test.passed]
        return passed[-1] if passed else None


class Calibrator:
    """Runs the parts of a calibration on one engine.

    Args:
        engine: answers and measures.
        step, advance: hear how far it is.
    """

    def __init__(self, engine: TeacherForcedEngine, step: Step, advance: Advance) -> None:
        self._engine = engine
        self._step = step
        self._advance = advance

    def answer(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[Text]:
        """The backbone's greedy answers."""
        self._step("answers of the backbone", len(prompts))
        found: list[Text] = []
        for start in range(0, len(prompts), PORTION):
            part = prompts[start : start + PORTION]
            found += self._engine.answers(part, tokens)
            self._advance(len(part))
        return found

    def measure(
        self, name: str, policy: Policy | None, texts: Sequence[Text], first: int, kv: bool = False
    ) -> Measured:
        """One pass, in portions."""
        self._step(name, len(texts))
        parts = []
        for start in range(0, len(texts), PORTION):
            part = texts[start : start + PORTION]
            parts.append(self._engine.run(policy, part, first + start, kv))
            self._advance(len(part))
        return joined(parts)

    def calibrate(
        self, texts: Sequence[Text], pilot: int, target: Target, delta: float, kv: bool
    ) -> Outcome:
        """Choose candidates on the first ``pilot`` texts, test them on the others."""
        usable = [text for text in texts if text.forced]
        outcome = Outcome(
            target, delta, usable[:pilot], usable[pilot:], left_out=len(texts) - len(usable)
        )
        landscape = self._survey(outcome, kv)
        outcome.frontier = frontier(landscape)
        rungs = shares(target, len(outcome.tested), delta)
        scale = self._scale(outcome, landscape, rungs)
        outcome.ladder = ladder(landscape, target, rungs, scale)
        self._test(outcome)
        return outcome

    def check(
        self, policy: Policy, texts: Sequence[Text], target: Target, delta: float, kv: bool
    ) -> Outcome:
        """Measure one policy on all texts."""
        usable = [text for text in texts if text.forced]
        outcome = Outcome(target, delta, [], usable, left_out=len(texts) - len(usable))

        def measure(chosen: Policy, part: slice) -> Measured:
            with_kv = kv and part.start == 0
            self.measure("backbone", None, usable[part], part.start, with_kv)
            return self.measure("river", chosen, usable[part], part.start, with_kv)

        outcome.tests.append(
            run_test(policy, measure, len(usable), PORTION, target, delta, to_the_end=True)
        )
        return outcome

    def _survey(self, outcome: Outcome, kv: bool) -> Landscape:
        backbone = self.measure("pilot: backbone", None, outcome.pilot, 0, kv)
        layers = outcome.target.num_layers
        forced = {}
        for depth in sorted({max(1, round(share * layers)) for share in DEPTHS}):
            policy = Policy(-1.0, depth)
            name = f"pilot: exit after layer {depth}"
            forced[depth] = self.measure(name, policy, outcome.pilot, 0, kv)
            outcome.forced.append(_summary(depth, forced[depth]))
        assert backbone.similarity is not None
        quantiles = np.quantile(backbone.similarity, [0.05, 0.5, 0.95], axis=0)
        outcome.similarity_quantiles = quantiles.T.round(4).tolist()
        return Landscape(backbone, forced, outcome.target, Target("kl", 1.0, layers))

    def _scale(self, outcome: Outcome, landscape: Landscape, rungs: Sequence[float]) -> float:
        """How much more candidates cost on the pilot than was predicted for them: a token that
        stays on the backbone still reads the K/V of those that left."""
        ratios = []
        for number, prediction in enumerate(ladder(landscape, outcome.target, rungs), 1):
            name = f"pilot: candidate {number}"
            measured = self.measure(name, prediction.policy, outcome.pilot, 0)
            if prediction.loss > 0:
                ratios.append(landscape.loss_of(measured) / prediction.loss)
        outcome.scale = float(np.mean(ratios)) if ratios else 1.0
        return outcome.scale

    def _test(self, outcome: Outcome) -> None:
        texts, first = outcome.tested, len(outcome.pilot)
        known: set[int] = set()

        def measure(policy: Policy, part: slice) -> Measured:
            chosen, start = texts[part], first + part.start
            if start not in known:
                self.measure("test: backbone", None, chosen, start)
                known.add(start)
            number = len(outcome.tests) + 1
            return self.measure(f"test: candidate {number}", policy, chosen, start)

        def test(policy: Policy) -> Trial:
            done = run_test(policy, measure, len(texts), PORTION, outcome.target, outcome.delta)
            outcome.tests.append(done)
            return done

        fixed_sequence([prediction.policy for prediction in outcome.ladder], test)


def joined(parts: Sequence[Measured]) -> Measured:
    """Passes over parts of the texts as one."""
    if len(parts) == 1:
        return parts[0]

    def optional(name: str) -> np.ndarray | None:
        found = [getattr(part, name) for part in parts]
        return None if any(x is None for x in found) else np.concatenate(found)

    return Measured(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.exit_layer for part in parts]),
        np.concatenate([part.agrees for part in parts]),
        np.concatenate([part.kl for part in parts]),
        optional("similarity"),
        optional("keys"),
        optional("values"),
    )


def _summary(layer: int, measured: Measured) -> ForcedExit:
    def by_layer(values: np.ndarray | None) -> list[float] | None:
        return None if values is None else values.mean(axis=0).round(5).tolist()

    return ForcedExit(
        layer,
        float(measured.agrees.mean()),
        float(measured.kl.mean()),
        by_layer(measured.keys),
        by_layer(measured.values),
    )
