"""Exit layers on their way to the response."""

from __future__ import annotations

import numpy as np

from river_vllm.modes.exit import ExitMode, ExitSummary, signed_depth


def test_the_sign_tells_decode_steps_from_the_prompt() -> None:
    assert (signed_depth(5, decode=True), signed_depth(5, decode=False)) == (5, -5)


def test_summary_counts_decode_tokens_only_and_adds_up_choices() -> None:
    summary = ExitSummary()
    summary.add(np.array([-30, 3, 3, 30], dtype=np.int16))
    summary.add(np.array([-7, 3, 5], dtype=np.int16))
    assert dict(summary.layers) == {3: 3, 5: 1, 30: 1}
    assert summary.tokens == 5
    assert summary.backbone_layers == 44
    assert summary.mean_exit_layer == 44 / 5


def test_counts_are_plain_numbers_that_json_takes() -> None:
    summary = ExitSummary()
    summary.add(np.array([3], dtype=np.int16))
    assert [(type(k), type(v)) for k, v in summary.layers.items()] == [(int, int)]


def test_no_decode_token_has_no_mean() -> None:
    summary = ExitSummary()
    assert summary.mean_exit_layer is None
    summary.add(np.array([-12], dtype=np.int16))
    assert (summary.tokens, summary.mean_exit_layer) == (0, None)


def test_a_held_token_counts_at_its_depth_and_apart() -> None:
    held, prompt = signed_depth(30, True, held=True), signed_depth(30, False)
    depths = np.array([prompt, held, 4, held], dtype=np.int16)
    summary = ExitSummary()
    summary.add(depths)
    assert (dict(summary.layers), summary.held) == ({4: 1, 30: 2}, 2)
    assert ExitMode().trace(depths) == [30, 30, 4, 30]


def test_trace_has_one_layer_per_token_the_first_included() -> None:
    layers = ExitMode().trace(np.array([-30, 3, 5], dtype=np.int16))
    assert layers == [30, 3, 5]
    assert all(type(layer) is int for layer in layers)
