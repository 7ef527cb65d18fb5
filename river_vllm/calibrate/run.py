"""A calibration, from prompts to tested settings.

Candidates are policies that are predicted to keep the target, safest first: one exit layer for all
tokens, or one τ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from river_vllm.calibrate.certify import Trial, prompts_needed, run_test
from river_vllm.calibrate.passes import Measured, Policy, TeacherForcedEngine, Text

BATCH = 64
"""Texts that one call to the engine takes."""

DEPTHS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.85, 0.95)
"""Exit layers of the pilot's passes, as shares of the layers."""
QUANTILES = np.concatenate((np.linspace(0.02, 0.98, 25), [0.99, 0.995, 0.999]))
"""Quantiles of the similarities that are tried as thresholds."""
SHARES = (0.4, 0.6, 0.8, 0.95)
"""Predicted losses of the candidates, as shares of the limit, safest first."""
LOWEST_SHARE = 0.1

_Item = TypeVar("_Item")
Step = Callable[[str, int], None]
"""Called at the start of each part, with its name and its number of texts."""

Advance = Callable[[int], None]
"""Called with the number of texts that have been done since the last call."""


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


@dataclass(slots=True)
class Outcome:
    """Everything that a calibration found.

    Attributes:
        limit: of the expected share of tokens that differ from the backbone's.
        pilot, tested: texts from which candidates were chosen, and on which they were tested.
        left_out: prompts whose answer is too short to have a decode step.
        forced: the pilot's agreement with the backbone, by the layer after which all tokens left.
        scale: the factor by which measured losses exceeded predicted ones.
        similarity_quantiles: 5 %, 50 % and 95 % of s after 1 … L−1 layers.
    """

    limit: float
    delta: float
    pilot: list[Text]
    tested: list[Text]
    left_out: int
    forced: dict[int, float] = field(default_factory=dict)
    candidates: list[Prediction] = field(default_factory=list)
    scale: float = 1.0
    tests: list[Trial] = field(default_factory=list)
    similarity_quantiles: list[list[float]] = field(default_factory=list)

    @property
    def chosen(self) -> Trial | None:
        """The last candidate that passed: the shallowest."""
        return next((test for test in reversed(self.tests) if test.passed), None)


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
        parts = self._batches("answers of the backbone", prompts)
        return [text for _, part in parts for text in self._engine.answers(part, tokens)]

    def measure(
        self, name: str, policy: Policy | None, texts: Sequence[Text], first: int
    ) -> Measured:
        """``TeacherForcedEngine.run`` in batches; ``name`` is shown with the progress."""
        parts = self._batches(name, texts)
        return joined([self._engine.run(policy, part, first + start) for start, part in parts])

    def _batches(self, name: str, items: Sequence[_Item]) -> Iterator[tuple[int, Sequence[_Item]]]:
        """Parts of ``items``, each with the index of its first; told as progress."""
        self._step(name, len(items))
        for start in range(0, len(items), BATCH):
            part = items[start : start + BATCH]
            yield start, part
            self._advance(len(part))

    def calibrate(
        self, texts: Sequence[Text], pilot: int, agreement: float, delta: float
    ) -> Outcome:
        """Choose candidates on the first ``pilot`` texts, test them on the others."""
        usable = [text for text in texts if text.forced]
        outcome = Outcome(
            1.0 - agreement, delta, usable[:pilot], usable[pilot:], len(texts) - len(usable)
        )
        predicted = self._predictions(outcome)
        shares = limit_shares(outcome.limit, len(outcome.tested), delta)
        outcome.scale = self._scale(outcome.pilot, candidates(predicted, outcome.limit, shares))
        outcome.candidates = candidates(predicted, outcome.limit, shares, outcome.scale)
        # Fixed-sequence testing (``certify.py``): up to the first that does not pass.
        for candidate in outcome.candidates:
            if not self._test(outcome, candidate.policy).passed:
                break
        return outcome

    def check(
        self, policy: Policy, texts: Sequence[Text], agreement: float, delta: float
    ) -> Outcome:
        """Test one policy on all texts."""
        usable = [text for text in texts if text.forced]
        outcome = Outcome(1.0 - agreement, delta, [], usable, len(texts) - len(usable))
        self._test(outcome, policy, to_the_end=True)
        return outcome

    def _predictions(self, outcome: Outcome) -> list[Prediction]:
        similarity = self.measure("pilot: backbone", None, outcome.pilot, 0).similarity
        assert similarity is not None
        forced = {}
        for layer in pilot_layers(similarity.shape[1] + 1):
            name = f"pilot: exit after layer {layer}"
            forced[layer] = self.measure(name, Policy(-1.0, layer), outcome.pilot, 0)
        outcome.forced = {layer: float(found.agrees.mean()) for layer, found in forced.items()}
        quantiles = np.quantile(similarity, [0.05, 0.5, 0.95], axis=0)
        outcome.similarity_quantiles = quantiles.T.round(4).tolist()
        return predictions(similarity, forced)

    def _scale(self, pilot: Sequence[Text], predicted: Sequence[Prediction]) -> float:
        """Mean of measured loss / predicted loss on the pilot. Measured losses are larger: a token
        that stays on the backbone reads the K/V of tokens that left."""
        ratios = []
        for number, prediction in enumerate(predicted, 1):
            measured = self.measure(f"pilot: candidate {number}", prediction.policy, pilot, 0)
            if prediction.loss > 0:
                ratios.append((1.0 - measured.agrees.mean()) / prediction.loss)
        return float(np.mean(ratios)) if ratios else 1.0

    def _test(self, outcome: Outcome, policy: Policy, to_the_end: bool = False) -> Trial:
        texts, number = outcome.tested, len(outcome.tests) + 1
        known = max((len(test.losses) for test in outcome.tests), default=0)

        def measure(policy: Policy, part: slice) -> Measured:
            chosen, first = texts[part], len(outcome.pilot) + part.start
            if part.start >= known:
                self.measure("test: backbone", None, chosen, first)
            return self.measure(f"test: candidate {number}", policy, chosen, first)

        limit, delta = outcome.limit, outcome.delta
        test = run_test(policy, measure, len(texts), BATCH, limit, delta, to_the_end)
        outcome.tests.append(test)
        return test


def pilot_layers(num_layers: int) -> list[int]:
    """Exit layers of the pilot's passes, 1 … L − 1: a token that runs all L does not leave."""
    return sorted({min(max(1, round(share * num_layers)), num_layers - 1) for share in DEPTHS})


def joined(parts: Sequence[Measured]) -> Measured:
    """Passes over parts of the texts as one."""

    def column(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        return None if any(values is None for values in found) else np.concatenate(found)

    return Measured(**{each.name: column(each.name) for each in fields(Measured)})
