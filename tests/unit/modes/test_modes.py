"""How a request is answered, and the numbers that travel with its tokens."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from vllm.v1.outputs import ModelRunnerOutput

from river_vllm.config import RiverConfig
from river_vllm.engine.scheduler import depths_of, put_depths
from river_vllm.modes import mode_of, mode_that_made
from river_vllm.modes.exit import ExitMode, ExitSummary, signed_depth
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
    for part in parts:
        summary.add(part)
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


def test_without_a_step_there_are_no_means() -> None:
    drafts, exits = DraftSummary(), ExitSummary()
    drafts.add(np.empty(0, dtype=np.int16))
    exits.add(np.array([-12], dtype=np.int16))
    report = drafts.report(SETTINGS, 12)
    assert report["acceptance"] is None and report["tokens_per_step"] is None
    report = exits.report(SETTINGS, 12)
    assert (report["tokens"], report["mean_exit_layer"]) == (0, None)


def test_exits_count_decode_tokens_only_and_those_that_were_held_apart() -> None:
    """The sign tells decode steps from the prompt."""
    held, prompt = signed_depth(30, True, held=True), signed_depth(30, False)
    depths = np.array([prompt, held, signed_depth(4, True), held], dtype=np.int16)
    summary = ExitSummary()
    summary.add(depths)
    summary.add(np.array([-7, 4], dtype=np.int16))
    assert (dict(summary.layers), summary.held) == ({4: 2, 30: 2}, 2)
    report = summary.report(SETTINGS, 30)
    assert (report["tokens"], report["mean_exit_layer"]) == (4, 17.0)
    trace = ExitMode().trace(depths)
    assert trace == [30, 30, 4, 30]
    assert {type(layer) for layer in [*trace, *summary.layers]} == {int}, "JSON takes it"


def test_vllms_output_carries_the_depths_across_processes() -> None:
    """An asynchronous one on the final output; a step without a forward pass has none."""
    depths = {"a": 3, "b": -12}
    final = ModelRunnerOutput(req_ids=["a", "b"], req_id_to_index={"a": 0, "b": 1})
    assert depths_of(final) == depths_of(None) == {}
    put_depths(SimpleNamespace(_model_runner_output=final), depths)
    assert depths_of(pickle.loads(pickle.dumps(final))) == depths
