"""How a request is answered, and the numbers that travel with its tokens."""

from __future__ import annotations

import numpy as np
import pytest

from river_vllm.config import RiverConfig
from river_vllm.modes import mode_of, mode_that_made
from river_vllm.modes.exit import ExitSummary, signed_depth
from river_vllm.modes.verified import DraftSummary, VerifiedMode
from river_vllm.request import RiverSettings, default_settings

SETTINGS = RiverSettings(True, 1.0, 1, mode="verified")


def drafted(drafted: int, kept: int, tokens: int, decode: bool = True) -> np.ndarray:
    return VerifiedMode().numbers(tokens, depth=12, drafted=drafted, kept=kept, decode=decode)


@pytest.mark.parametrize(
    ("settings", "summary"),
    [
        (default_settings(RiverConfig(threshold=0.9)), ExitSummary),
        (default_settings(RiverConfig()), DraftSummary),
        (RiverSettings(False, 0.9, 1, mode="verified"), ExitSummary),
    ],
)
def test_a_request_is_answered_in_its_own_mode(settings: RiverSettings, summary: type) -> None:
    assert type(mode_of(settings).summary()) is summary


def test_only_verified_requests_need_no_stock_bits() -> None:
    """Their rows run on the backbone, and any rounding will do."""
    verified, exits = SETTINGS, default_settings(RiverConfig(threshold=0.9))
    backbone = RiverSettings(False, 0.9, 1, mode="verified")
    assert [mode_of(settings).exact for settings in (verified, exits, backbone)] == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("depth", [-12, -1, 1, 12, signed_depth(12, True, held=True)])
def test_numbers_tell_the_mode_that_made_them(depth: int) -> None:
    exits = mode_of(default_settings(RiverConfig(threshold=0.9)))
    left = exits.numbers(1, depth=depth, drafted=0, kept=0, decode=True)
    assert mode_that_made(left) is exits
    for numbers in (drafted(0, 0, 1, decode=False), drafted(16, 16, 17)):
        assert mode_that_made(numbers) is mode_of(SETTINGS)


def test_a_choices_life() -> None:
    parts = [
        drafted(0, 0, 1, decode=False),
        drafted(4, 4, 5),
        drafted(0, 0, 1),
        drafted(3, 1, 2),
        drafted(4, 4, 2),  # a stop cut the rest off
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
    parts = [drafted(0, 0, 1, decode=False), drafted(4, 2, 3)]
    assert mode_of(SETTINGS).trace(np.concatenate(parts)) == [0, 1, 1, 0]


def test_steps_add_up_as_they_come() -> None:
    summary = DraftSummary()
    for part in (drafted(0, 0, 1, decode=False), drafted(2, 1, 2)):
        summary.add(part)
    assert (summary.tokens, summary.steps, summary.drafted, summary.accepted) == (2, 1, 2, 1)


def test_nothing_yet() -> None:
    summary = DraftSummary()
    summary.add(np.empty(0, dtype=np.int16))
    report = summary.report(SETTINGS, 12)
    assert report["acceptance"] is None and report["tokens_per_step"] is None
    assert report["tokens"] == report["drafted"] == 0
