"""A calibration from prompts to tested settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from river_vllm.calibration.candidates import candidates, limit_shares
from river_vllm.calibration.certify import Trial, fixed_sequence, run_test
from river_vllm.calibration.exit_costs import ExitCosts, Prediction
from river_vllm.calibration.observer import Measured
from river_vllm.calibration.passes import TeacherForcedEngine, Text
from river_vllm.calibration.policy import Policy
from river_vllm.calibration.target import Target

BATCH = 64
"""Texts that one call to the engine takes."""

DEPTHS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.85, 0.95)
"""Exit layers of the pilot's passes, as shares of the layers."""

Step = Callable[[str, int], None]
"""Called at the start of each part, with its name and the number of texts that it is over."""

Advance = Callable[[int], None]
"""Called with the number of texts that have been done since the last call."""


@dataclass(frozen=True, slots=True)
class ForcedExit:
    """The pilot's pass in which every token leaves after the same layer.

    Attributes:
        agreement: share of tokens whose likeliest next token is the backbone's.
        kl: KL(backbone ‖ river), mean over tokens, in nats.
        keys, values: cosine with the backbone's K and V by layer, mean over tokens.
    """

    layer: int
    agreement: float
    kl: float
    keys: list[float] | None
    values: list[float] | None


@dataclass(slots=True)
class Outcome:
    """Everything that a calibration found.

    Attributes:
        pilot, tested: texts from which candidates were chosen, and on which they were tested.
        left_out: prompts whose answer is too short to have a decode step.
        scale: the factor by which measured losses exceeded predicted ones.
        similarity_quantiles: 5 %, 50 % and 95 % of s after 1 … L−1 layers.
    """

    target: Target
    delta: float
    pilot: list[Text]
    tested: list[Text]
    left_out: int
    forced: list[ForcedExit] = field(default_factory=list)
    candidates: list[Prediction] = field(default_factory=list)
    scale: float = 1.0
    tests: list[Trial] = field(default_factory=list)
    similarity_quantiles: list[list[float]] = field(default_factory=list)

    @property
    def chosen(self) -> Trial | None:
        """The last candidate that passed: the shallowest, or for a depth target the deepest."""
        passed = [test for test in self.tests if test.passed]
        return passed[-1] if passed else None


class Calibrator:
    """Runs the parts of a calibration on one engine.

    Args:
        engine: answers and measures.
        step, advance: told of the progress.
    """

    def __init__(self, engine: TeacherForcedEngine, step: Step, advance: Advance) -> None:
        self._engine = engine
        self._step = step
        self._advance = advance

    def answer(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[Text]:
        """The backbone's greedy answers, ``tokens`` long at most."""
        self._step("answers of the backbone", len(prompts))
        found: list[Text] = []
        for start in range(0, len(prompts), BATCH):
            part = prompts[start : start + BATCH]
            found += self._engine.answers(part, tokens)
            self._advance(len(part))
        return found

    def measure(
        self, name: str, policy: Policy | None, texts: Sequence[Text], first: int, kv: bool = False
    ) -> Measured:
        """``TeacherForcedEngine.run`` in batches; ``name`` is what the progress calls it."""
        self._step(name, len(texts))
        parts = []
        for start in range(0, len(texts), BATCH):
            part = texts[start : start + BATCH]
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
        costs = self._exit_costs(outcome, kv)
        shares = limit_shares(target, len(outcome.tested), delta)
        outcome.scale = self._scale(outcome.pilot, costs, candidates(costs, target, shares))
        outcome.candidates = candidates(costs, target, shares, outcome.scale)
        self._test(outcome)
        return outcome

    def check(
        self, policy: Policy, texts: Sequence[Text], target: Target, delta: float, kv: bool
    ) -> Outcome:
        """Test one policy on all texts."""
        usable = [text for text in texts if text.forced]
        outcome = Outcome(target, delta, [], usable, left_out=len(texts) - len(usable))

        def measure(chosen: Policy, part: slice) -> Measured:
            with_kv = kv and part.start == 0
            self.measure("backbone", None, usable[part], part.start, with_kv)
            return self.measure("river", chosen, usable[part], part.start, with_kv)

        outcome.tests.append(
            run_test(policy, measure, len(usable), BATCH, target, delta, to_the_end=True)
        )
        return outcome

    def _exit_costs(self, outcome: Outcome, kv: bool) -> ExitCosts:
        backbone = self.measure("pilot: backbone", None, outcome.pilot, 0, kv)
        forced = {}
        for layer in pilot_layers(outcome.target.num_layers):
            policy = Policy(-1.0, layer)
            name = f"pilot: exit after layer {layer}"
            forced[layer] = self.measure(name, policy, outcome.pilot, 0, kv)
            outcome.forced.append(_summary(layer, forced[layer]))
        assert backbone.similarity is not None
        quantiles = np.quantile(backbone.similarity, [0.05, 0.5, 0.95], axis=0)
        outcome.similarity_quantiles = quantiles.T.round(4).tolist()
        return ExitCosts(backbone, forced, outcome.target)

    def _scale(
        self, pilot: Sequence[Text], costs: ExitCosts, predictions: Sequence[Prediction]
    ) -> float:
        """How much more policies lose on the pilot than predicted: a token that stays on the
        backbone still reads the K/V of those that left."""
        ratios = []
        for number, prediction in enumerate(predictions, 1):
            measured = self.measure(f"pilot: candidate {number}", prediction.policy, pilot, 0)
            if prediction.loss > 0:
                ratios.append(costs.loss_of(measured) / prediction.loss)
        return float(np.mean(ratios)) if ratios else 1.0

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
            done = run_test(policy, measure, len(texts), BATCH, outcome.target, outcome.delta)
            outcome.tests.append(done)
            return done

        fixed_sequence([prediction.policy for prediction in outcome.candidates], test)


def pilot_layers(num_layers: int) -> list[int]:
    """Exit layers of the pilot's passes, 1 … L − 1: a token that runs all L does not leave."""
    return sorted({min(max(1, round(share * num_layers)), num_layers - 1) for share in DEPTHS})


def joined(parts: Sequence[Measured]) -> Measured:
    """Passes over parts of the texts as one."""

    def column(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        return None if any(values is None for values in found) else np.concatenate(found)

    return Measured(**{each.name: column(each.name) for each in fields(Measured)})


def _summary(layer: int, measured: Measured) -> ForcedExit:
    def by_layer(cosines: Any) -> list[float] | None:
        return None if cosines is None else cosines.mean(axis=0).round(5).tolist()

    return ForcedExit(
        layer,
        float(measured.agrees.mean()),
        float(measured.kl.mean()),
        by_layer(measured.keys),
        by_layer(measured.values),
    )
