"""Teacher forcing: one pass over a text gives what decoding along it gave."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from river_vllm.calibrate.passes import NO_EXIT, Measured, Policy, TeacherForcedEngine, Text
from river_vllm.calibrate.run import Calibrator
from tests.support.engines import Generated, generate, greedy
from tests.support.prompts import PROMPTS

pytestmark = pytest.mark.engine

TOKENS = 24
POLICY = Policy(0.95, 3)


@pytest.fixture(scope="module")
def decoded(river_smollm2: Any) -> tuple[list[Text], list[Generated]]:
    """Texts that the river itself decoded, with the exit layer of every token."""
    encode = river_smollm2.get_tokenizer().encode
    prompts = [encode(prompt) for prompt in PROMPTS[:8]]
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    answers = generate(river_smollm2, inputs, greedy(TOKENS, asdict(POLICY)))
    texts = [
        Text(tuple(prompt), tuple(answer.tokens))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return texts, answers


@pytest.fixture(scope="module")
def forced(river_smollm2: Any, decoded: Any) -> tuple[Measured, Measured, Measured]:
    """The backbone's pass, the same again as a policy, and the policy's."""
    engine = TeacherForcedEngine(river_smollm2)
    reference = engine.run(None, decoded[0])
    again = engine.run(Policy(NO_EXIT, 1), decoded[0])
    return reference, again, engine.run(POLICY, decoded[0])


def test_exit_layers_are_those_of_decoding(decoded: Any, forced: Any) -> None:
    """bf16 products of many rows round differently than of one: a similarity may cross τ, and
    what it changes in K and V may move a later one. Few do, and the text stays the same."""
    texts, answers = decoded
    measured = forced[2]
    by_token = dict(zip(map(tuple, measured.tokens.tolist()), measured.exit_layer, strict=True))
    pairs = [
        (by_token[index, len(text.prompt) + step], layer)
        for index, (text, answer) in enumerate(zip(texts, answers, strict=True))
        for step, layer in enumerate(answer.exit_layers[1:])
    ]
    assert len(pairs) == 8 * (TOKENS - 1) == len(by_token)
    ours, theirs = (np.array(side) for side in zip(*pairs, strict=True))
    assert len(set(theirs.tolist())) > 3
    assert (ours == theirs).mean() > 0.95


def test_policy_pass_has_the_decoded_tokens_as_its_likeliest(decoded: Any, forced: Any) -> None:
    """The text is what the river decoded, so its own pass predicts it but for near ties; and the
    agreement with the backbone is computed on what the backbone predicts."""
    texts, _ = decoded
    reference, _, measured = forced
    assert reference.agrees.all()
    assert 0.5 < measured.agrees.mean() < 1.0
    assert [tuple(t) for t in measured.tokens.tolist()] == sorted(
        (i, p) for i, x in enumerate(texts) for p in range(len(x.prompt), len(x.prompt) + x.forced)
    )


def test_backbone_repeats_itself(forced: Any) -> None:
    reference, again, _ = forced
    assert np.array_equal(again.tokens, reference.tokens)
    assert set(again.exit_layer.tolist()) == {30}
    assert again.agrees.all()


def test_similarities_predict_the_first_tokens_exit(decoded: Any, forced: Any) -> None:
    """A text's first generated token reads only exact K/V: its exit follows from the backbone's
    similarities."""
    texts, _ = decoded
    reference, _, measured = forced
    assert reference.similarity.shape == (len(reference.tokens), 29)
    predicted = POLICY.exit_layers(reference.similarity)
    starts = {(i, len(text.prompt)) for i, text in enumerate(texts)}
    first = [index for index, t in enumerate(map(tuple, measured.tokens.tolist())) if t in starts]
    assert len(first) == len(texts)
    assert predicted[first].tolist() == measured.exit_layer[first].tolist()


def test_calibration_on_the_engine(river_smollm2: Any) -> None:
    """Candidates are tested on other prompts than they were chosen on."""
    done: list[int] = []
    engine = TeacherForcedEngine(river_smollm2)
    calibrator = Calibrator(engine, lambda *_: None, done.append)
    encode = river_smollm2.get_tokenizer().encode
    texts = calibrator.answer([encode(prompt) for prompt in PROMPTS], 12)
    assert all(len(text.answer) <= 12 for text in texts)
    outcome = calibrator.calibrate(texts, 8, 0.5, 0.3)
    assert list(outcome.forced) == [1, 3, 9, 15, 21, 26, 28]
    assert all(0.5 < agreement < 1.0 for agreement in outcome.forced.values())
    assert len(outcome.similarity_quantiles) == 29
    assert outcome.tests
    for test in outcome.tests:
        assert len(test.losses) <= len(outcome.tested) <= 12
        predicted = next(p for p in outcome.candidates if p.policy == test.policy)
        assert test.mean_exit_layer == pytest.approx(predicted.mean_exit_layer, abs=6)
        assert test.loss <= outcome.limit
    assert sum(done) > 9 * 8
