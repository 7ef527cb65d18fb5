"""Fixed requests, and what is said where a record of their answers differs from another."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.prompts import PROMPTS
from tools.recorded_requests import TABLE, differences, main, river_config

GROUPS: dict[str, Any] = yaml.safe_load(TABLE.read_text())
ANSWER = {"tokens": [5, 6, 7], "trace": [6, 2, 2], "report": {"exit_layers": {"2": 2}, "held": 0}}


def test_there_are_fifty() -> None:
    assert sum(len(batch) for group in GROUPS.values() for batch in group["batches"]) == 50


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_is_well_formed(name: str) -> None:
    group = GROUPS[name]
    assert group.keys() <= {"model", "config", "engine", "batches"}
    for number, request in enumerate(chain(*group["batches"])):
        assert request.keys() <= {"prompt", "after", "tokens", "seed", "river"}
        if "after" in request:
            assert request["after"] < number
        else:
            assert request["prompt"] == "long" or PROMPTS[request["prompt"]]


@pytest.mark.parametrize("name", GROUPS)
def test_no_timing_decides(name: str) -> None:
    config = river_config(GROUPS[name]["config"])
    assert config.draft == "fixed" if config.verify else config.max_rows != "auto"


def test_equal_answers() -> None:
    assert differences({"a/0": ANSWER}, {"a/0": dict(ANSWER)}) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"tokens": [5, 9, 8]}, "a/0: tokens[1]: 6 before, 9 now"),
        ({"tokens": [5, 6]}, "a/0: tokens[2]: 7 before, None now"),
        ({"trace": [6, 2, 3]}, "a/0: trace[2]: 2 before, 3 now"),
        (
            {"report": {"exit_layers": {"2": 2}, "held": 1}},
            "a/0: report.held: 0 before, 1 now",
        ),
        (
            {"report": {"exit_layers": {"3": 2}, "held": 0}},
            "a/0: report.exit_layers.2: 2 before, None now",
        ),
    ],
)
def test_the_first_difference_of_an_answer(change: dict[str, Any], expected: str) -> None:
    both = {"a/0": ANSWER, "a/1": ANSWER}, {"a/0": {**ANSWER, **change}, "a/1": ANSWER}
    assert differences(*both) == [expected]


def test_an_answer_that_only_one_record_has() -> None:
    one, two = {"a/0": ANSWER}, {"a/0": ANSWER, "a/1": ANSWER}
    assert differences(one, two) == ["a/1: only now"]
    assert differences(two, one) == ["a/1: only before"]


@pytest.mark.parametrize(("token", "status"), [(7, 0), (8, 1)])
def test_the_exit_status_says_whether_they_agree(
    token: int,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, now = tmp_path / "before.json", tmp_path / "now.json"
    monkeypatch.setattr("tools.recorded_requests.record", lambda _: {"step/0": ANSWER})
    monkeypatch.setattr("sys.argv", ["recorded_requests.py", str(before)])
    assert main() == 0
    changed = {**ANSWER, "tokens": [5, 6, token]}
    monkeypatch.setattr("tools.recorded_requests.record", lambda _: {"step/0": changed})
    only = ["--against", str(before), "--only", "step"]
    monkeypatch.setattr("sys.argv", ["recorded_requests.py", str(now), *only])
    assert main() == status
    expected = "step/0: tokens[2]: 7 before, 8 now" if status else "1 answers are as before"
    assert capsys.readouterr().out.strip() == expected
    assert json.loads(now.read_text())["answers"] == {"step/0": changed}


def test_an_engine_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: Any) -> Any:
        raise RuntimeError("the engine of group 'step' failed")

    monkeypatch.setattr("tools.recorded_requests.record", fails)
    monkeypatch.setattr("sys.argv", ["recorded_requests.py", str(tmp_path / "now.json")])
    assert main() == 2
    assert "group 'step'" in capsys.readouterr().err
    assert not (tmp_path / "now.json").exists()
