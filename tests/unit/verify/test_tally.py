"""Drafts and their fate, one number per token."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from river_vllm.request import RiverSettings
from river_vllm.verify.tally import DraftSummary, StepTally, drafted_trace, step_tallies

SETTINGS = RiverSettings(True, 1.0, 1, mode="verified")


def test_a_choices_life() -> None:
    parts = [
        StepTally(0, 0, decode=False).values(1),
        StepTally(4, 4, decode=True).values(5),
        StepTally(0, 0, decode=True).values(1),
        StepTally(3, 1, decode=True).values(2),
        StepTally(4, 4, decode=True).values(2),  # a stop cut the rest off
    ]
    summary = DraftSummary()
    summary.add(np.concatenate(parts))
    assert summary.report(SETTINGS, 12) == {
        "num_layers": 12,
        "tokens": 10,
        "steps": 4,
        "tokens_per_step": 2.5,
        "drafted": 11,
        "accepted": 7,
        "acceptance": 0.6364,
    }


def test_which_tokens_were_drafted() -> None:
    parts = [StepTally(0, 0, False).values(1), StepTally(4, 2, True).values(3)]
    assert drafted_trace(np.concatenate(parts)) == [0, 1, 1, 0]


def test_steps_add_up_as_they_come() -> None:
    summary = DraftSummary()
    for part in (StepTally(0, 0, False).values(1), StepTally(2, 1, True).values(2)):
        summary.add(part)
    assert (summary.tokens, summary.steps, summary.drafted, summary.accepted) == (2, 1, 2, 1)


def test_nothing_yet() -> None:
    summary = DraftSummary()
    summary.add(np.empty(0, dtype=np.int16))
    report = summary.report(SETTINGS, 12)
    assert report["acceptance"] is None and report["tokens_per_step"] is None
    assert report["tokens"] == report["drafted"] == 0


def test_what_a_step_did() -> None:
    requests = {
        "new": SimpleNamespace(num_output_tokens=0),
        "old": SimpleNamespace(num_output_tokens=9),
        "plain": SimpleNamespace(num_output_tokens=9),
        "chunk": SimpleNamespace(num_output_tokens=0),
    }
    scheduled = SimpleNamespace(scheduled_spec_decode_tokens={"old": [5, 6, 7]})
    ran = SimpleNamespace(
        sampled_token_ids=[[1], [5, 6, 9], [2], [], [3]],
        req_id_to_index={"new": 0, "old": 1, "plain": 2, "chunk": 3, "aborted": 4},
    )
    assert step_tallies(requests, scheduled, ran) == {
        "new": StepTally(0, 0, decode=False),
        "old": StepTally(3, 2, decode=True),
        "plain": StepTally(0, 0, decode=True),
        "chunk": StepTally(0, 0, decode=False),
    }
    ran.sampled_token_ids = []
    assert step_tallies(requests, scheduled, ran) == {}
