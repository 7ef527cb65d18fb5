"""The 12-bit form of ``experiments/twelve_bit.py`` gives every bf16 weight back, bit for bit."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch

from tests.support.checkpoints import ROOT


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("twelve_bit")


def assert_comes_back(script: ModuleType, weight: torch.Tensor) -> int:
    """Returns the number of escapes."""
    form = script.encode(weight)
    assert torch.equal(script.decode(form).view(torch.int16), weight.view(torch.int16))
    return len(form.values)


def test_weights_of_one_size_have_no_escapes(script: ModuleType) -> None:
    weight = (torch.rand(8, 256) + 0.5).bfloat16() * torch.tensor([1.0, -1.0]).repeat(128)
    weight[:, ::7] = 0.0
    assert assert_comes_back(script, weight.bfloat16()) == 0


def test_every_number_there_is(script: ModuleType) -> None:
    """Of all sizes, subnormal, infinite and not numbers: nearly all of them escapes."""
    weight = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16).view(256, 256)
    # 15 high bytes are kept, and zero: 256 words each.
    assert assert_comes_back(script, weight) == 65536 - 15 * 256 - 1


def test_other_shapes_are_refused(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="multiples of 4 and 128"):
        script.encode(torch.zeros(6, 128, dtype=torch.bfloat16))
