"""Two runs on the same problems, and the files that they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from river_vllm.errors import RiverError
from server.eval.paired import Samples, pair, read_samples
from server.eval.sides import Depth


def write(folder: Path, values: list[Any], task: str = "t", **changes: Any) -> Path:
    """A run as lm-eval leaves it, its lines not in order."""
    rows = [
        {
            "doc_id": number,
            "doc": {"question": "?"},
            "filter": "none",
            "metrics": ["score", "corpus"],
            "score": value,
            "corpus": ["a reference", "an answer"],
            "doc_hash": "d",
            "prompt_hash": "p",
            "resps": [[str(value)]],
            **changes,
        }
        for number, value in enumerate(values)
    ]
    folder.mkdir(exist_ok=True)
    file = folder / f"samples_{task}_2026-11-27T12-00-00.000000.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in reversed(rows)]
    file.write_text("".join(lines), encoding="utf-8")
    return folder


def runs(tmp_path: Path, a: list[Any], b: list[Any]) -> tuple[Samples, Samples]:
    return read_samples(write(tmp_path / "a", a)), read_samples(write(tmp_path / "b", b))


def test_shares(tmp_path: Path):
    """Seven lost and three won of 200: the figures of the documentation."""
    a = [1] * 100 + [0] * 100
    b = [0] * 7 + [1] * 93 + [1] * 3 + [0] * 97
    (found,) = pair(*runs(tmp_path, a, b), 0.95)
    assert (found.problems, found.a, found.b) == (200, 0.5, 0.48)
    assert found.only_a == [str(n) for n in range(7)]
    assert found.only_b == ["100", "101", "102"]
    assert found.p_value == pytest.approx(0.34375)
    assert found.difference == pytest.approx(-0.02)
    # p = 4/202, q = 8/202, z = 1.959964
    assert (found.low, found.high) == pytest.approx((-0.053302, 0.013698), abs=1e-6)
    assert found.identical == 190


def test_no_flip_still_leaves_doubt(tmp_path: Path):
    (found,) = pair(*runs(tmp_path, [1, 0, 1], [1, 0, 1]), 0.95)
    assert (found.p_value, found.identical, found.low < 0 < found.high) == (1.0, 3, True)


def test_other_means(tmp_path: Path):
    (found,) = pair(*runs(tmp_path, [0.5, 2.0, 3.0], [1.0, 4.0, 3.5]), 0.95)
    assert found.difference == pytest.approx(1.0)
    # mean 1, standard deviation √0.75, Student's t with 2 degrees of freedom 4.302653
    assert (found.low, found.high) == pytest.approx((-1.151326, 3.151326), abs=1e-5)
    assert (found.p_value, found.is_share) == (0.25, False)
    (same,) = pair(*runs(tmp_path, [0.5, 2.0], [1.0, 2.5]), 0.95)
    assert (same.low, same.high) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "changes", "said"),
    [
        ([1, 0, 1], {}, "A has 2 problems and B 3"),
        ([1, 0], {"prompt_hash": "other"}, "t: problem 0"),
        ([1, 0], {"task": "more"}, "A has 0 problems and B 2"),
        ([["x", "y"], ["x", "z"]], {}, "nothing to compare"),
        ([1.0, float("nan")], {}, "nothing to compare"),
    ],
)
def test_sides_that_cannot_be_compared(tmp_path: Path, values: list[Any], changes: Any, said: str):
    """Metrics of whole sets alone, and what is no number: with --max-loss it would have passed."""
    a = read_samples(write(tmp_path / "a", [1, 0]))
    with pytest.raises(RiverError, match=said):
        pair(a, read_samples(write(tmp_path / "b", values, **changes)), 0.95)


def test_folders_that_hold_no_run(tmp_path: Path):
    with pytest.raises(RiverError, match=str(tmp_path)):
        read_samples(tmp_path)
    folder = write(tmp_path / "a", [1, 0])
    (file,) = folder.iterdir()
    (folder / file.name.replace("12-00", "13-00")).write_text(file.read_text())
    with pytest.raises(RiverError, match="t, found two"):
        read_samples(folder)
    file.write_text("{}\n")
    with pytest.raises(RiverError, match="line 1"):
        read_samples(folder)


def test_answers_may_hold_what_unicode_calls_the_end_of_a_line(tmp_path: Path):
    """lm-eval writes them as they are."""
    answer = [["one\u2028two\u2029three\x85four"]]
    (found,) = read_samples(write(tmp_path / "a", [1], resps=answer)).values()
    assert found[0].answer == answer


def test_depth_between_two_looks():
    server = {"server": "a", "num_layers": 10}
    before = {**server, "tokens": 5, "backbone_layers": 50, "held_tokens": 1}
    after = {**server, "tokens": 9, "backbone_layers": 60, "held_tokens": 2}
    assert Depth.between(before, after) == Depth(4, 10, 2.5, 1)
    assert Depth.between(before, before) is None  # nothing of it ran
    assert Depth.between(before, {**after, "server": "b"}) is None  # started anew
    assert Depth.between({}, after) is None  # the first look failed
    assert Depth.between({}, {}) is None  # no river
