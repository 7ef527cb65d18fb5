"""Which tokens a list holds, and the file that holds it."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from river_vllm.errors import RiverError
from river_vllm.guarantee import ModelRecord
from river_vllm.modes.verified.token_list import (
    COVERAGE,
    MULTIPLE,
    CountedRecord,
    Text,
    TokenList,
    choose,
    counted,
    read,
)

VOCABULARY = 4096
COUNTED = CountedRecord(prompts="p.jsonl", answers=2, tokens=300, coverage=0.997)


def spoken(
    answers: int, used: list[int], seed: int = 0, prompt: tuple[int, ...] = ()
) -> list[Text]:
    """Answers of 100 tokens out of ``used``, the first of them most often."""
    draw = random.Random(seed)
    weights = [1 / (place + 1) for place in range(len(used))]
    return [(prompt, draw.choices(used, weights, k=100)) for _ in range(answers)]


def share(listed: Iterable[int], texts: list[Text]) -> float:
    """Of the answers' tokens that are listed or stand before in their own text."""
    held = total = 0
    for prompt, answer in texts:
        seen = {*listed, *prompt}
        for token in answer:
            held += token in seen
            seen.add(token)
            total += 1
    return held / total


def test_it_covers_answers_that_were_not_counted() -> None:
    """With the tokens that are used most, not with those of low numbers."""
    used = list(range(3000, 3600))
    found = choose(spoken(200, used), VOCABULARY)
    assert found is not None
    ids, covered = found
    assert len(ids) % MULTIPLE == 0
    assert len(ids) < 700
    assert list(ids) == sorted(set(ids.tolist()))
    assert covered >= COVERAGE
    assert share(ids.tolist(), spoken(100, used, seed=1)) > COVERAGE - 0.002
    assert set(used[:100]) <= set(ids.tolist())


def test_the_coverage_is_that_of_the_half_that_was_not_counted() -> None:
    texts = spoken(200, list(range(3000, 3600)))
    found = choose(texts, VOCABULARY)
    assert found is not None
    ids, covered = found
    counts = Counter(token for _, answer in texts[::2] for token in answer)
    ranked = sorted(range(VOCABULARY), key=lambda token: (-counts[token], token))
    assert covered == pytest.approx(share(ranked[: len(ids)], texts[1::2]), abs=1e-9)
    assert covered < share(ids.tolist(), texts[1::2])


def test_what_a_prompt_names_needs_no_place_in_the_list() -> None:
    rare = tuple(range(3000, 3600))
    with_it = choose(spoken(50, list(rare), prompt=rare), VOCABULARY)
    assert with_it is not None
    assert with_it[1] == 1.0
    assert len(with_it[0]) == MULTIPLE


def test_unused_tokens_follow_by_their_number() -> None:
    """Too few answers to have said everything: the lowest numbers fill up."""
    texts = spoken(40, list(range(900)))
    found = choose(texts, VOCABULARY)
    assert found is not None
    said = {token for _, answer in texts for token in answer}
    assert said <= set(found[0].tolist()) or len(found[0]) < len(said)
    assert max(found[0]) < 1024


def test_tokens_beside_text_are_always_there() -> None:
    found = choose(spoken(200, list(range(200))), VOCABULARY, always=[4095, 7, 4000])
    assert found is not None
    assert {4095, 7, 4000} <= set(found[0].tolist())


def test_tokens_beside_text_are_there_where_the_answers_need_fewer() -> None:
    rare, beside = tuple(range(3000, 3600)), list(range(2000, 2200))
    found = choose(spoken(50, list(rare), prompt=rare), VOCABULARY, always=beside)
    assert found is not None
    assert set(beside) <= set(found[0].tolist())


@pytest.mark.parametrize(
    "texts",
    [[], [([1], [2, 3])], spoken(4, list(range(2000, 4000)))],
    ids=["no answers", "one answer", "answers that say everything"],
)
def test_too_few_answers_make_no_list(texts: list[Text]) -> None:
    assert choose(texts, VOCABULARY) is None
    assert counted(texts, VOCABULARY, [], [], "p") is None


def test_what_was_counted_is_recorded() -> None:
    model = ModelRecord(name="m", config_sha256="a", weights_sha256="b")
    made = counted(spoken(200, list(range(600))), VOCABULARY, [9], [model], "p.jsonl")
    assert made is not None
    assert (made.counted.prompts, made.counted.answers, made.counted.tokens) == (
        *("p.jsonl", 200),
        20_000,
    )
    assert made.counted.coverage >= COVERAGE
    assert (made.models, made.vocabulary) == ((model,), VOCABULARY)
    assert made.tokens == len(made.ids)


def written(folder: Path, ids: Any, size: int, **changes: Any) -> Path:
    made = TokenList.of(ids, size, [ModelRecord(name="m", revision="c")], COUNTED)
    file = folder / "list.json"
    made.write(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return file


@pytest.mark.parametrize("vocabulary", [4096, 4099])
def test_it_is_read_as_it_was_written(tmp_path: Path, vocabulary: int) -> None:
    ids = np.sort(np.random.default_rng(0).permutation(vocabulary)[:640])
    ids[-1] = vocabulary - 1
    file = written(tmp_path, ids, vocabulary)
    found = read(file)
    assert np.array_equal(found.ids, ids)
    assert found.counted == COUNTED
    assert found.models == (ModelRecord(name="m", revision="c"),)
    assert file.stat().st_size < vocabulary // 6 + 1000


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": 128}, "are not 128 of 4096 tokens"),
        ({"tokens": 63}, "multiple of 64"),
        ({"vocabulary": 4200}, "are not 64 of 4200"),
        ({"bits": "%"}, "'bits'"),
        ({"format": "river-tokens-2"}, "river-tokens-1"),
        ({"extra": 1}, "not permitted"),
    ],
    ids=str,
)
def test_a_damaged_list_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    file = written(tmp_path, np.arange(64), 4096, **changes)
    with pytest.raises(RiverError) as error:
        read(file)
    assert str(file) in str(error.value)
    assert words in str(error.value)


def test_what_is_no_list_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    with pytest.raises(RiverError, match="No such file"):
        read(file)
    file.write_text("{")
    with pytest.raises(RiverError, match=r"x\.json"):
        read(file)
