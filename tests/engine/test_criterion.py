"""Exits by the norm of the state, against a plain PyTorch model that computes the same states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from river_vllm import RiverConfig
from river_vllm.criterion import smallness
from tests.support import engines
from tests.support.engines import generate, greedy
from tests.support.prompts import PROMPTS
from tests.support.reference import ReferenceModel

pytestmark = pytest.mark.engine

MIN_LAYERS = 4
ROUNDING = 0.01
"""Residual streams in bf16 are off by up to 1 % from float32 ones; that moves (1 − ρ)/(1 + ρ) by
half of it at most."""


# The session's: an engine that ends takes the process's distributed groups with it.
@pytest.fixture(scope="session")
def by_norm(smollm2: Path) -> Any:
    return engines.river_engine(
        smollm2, RiverConfig(criterion="norm", scope="token", max_rows="all")
    )


def test_tokens_leave_by_the_norm_of_their_state(by_norm: Any, smollm2: Path) -> None:
    reference = ReferenceModel(smollm2)
    layers = reference.num_layers
    prompt = by_norm.get_tokenizer().encode(PROMPTS[2])
    reference.run(prompt, [layers] * len(prompt))
    threshold = round(float(_values(reference)[1:, MIN_LAYERS - 1].median()), 4)
    settings = {"threshold": threshold, "min_layers": MIN_LAYERS}
    (answer,) = generate(by_norm, [{"prompt_token_ids": prompt}], greedy(32, settings))
    depths = answer.exit_layers[1:]
    assert MIN_LAYERS in depths
    assert layers in depths
    reference.run(prompt + answer.tokens[:-1], [layers] * len(prompt) + depths)
    for depth, values in zip(depths, _values(reference)[len(prompt) :], strict=True):
        assert (values[MIN_LAYERS - 1 : depth - 1] <= threshold + ROUNDING).all()
        if depth < layers:
            assert values[depth - 1] > threshold - ROUNDING


def _values(reference: ReferenceModel) -> torch.Tensor:
    """The criterion of every state of the last run, ``[tokens, L]``."""
    states = torch.stack([torch.stack(token) for token in reference.states])
    return smallness(states, states)
