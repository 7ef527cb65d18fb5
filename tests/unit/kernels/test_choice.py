"""Which kernel a projection shape gets."""

from __future__ import annotations

import pytest
import torch

from river_vllm.errors import RiverError
from river_vllm.kernels import choice, timing
from river_vllm.kernels.base import Int4Kernel, LinearSpec, PackedLinear
from river_vllm.kernels.choice import KernelChooser
from river_vllm.quantization import QUANTIZERS, GroupedWeight
from tests.unit.kernels.support import Clock, spec_of

SPEC = spec_of(64, 32, 32)
WEIGHT = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).bfloat16()


CLOCK = Clock()
RAN: list[str] = []


class Packed(PackedLinear):
    nbytes = 0

    def __init__(self, kernel: str, weight: GroupedWeight) -> None:
        self.kernel, self.weight = kernel, weight

    def apply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        assert (x.shape[0], x.dtype) == (1, torch.bfloat16)
        RAN.append(self.kernel)
        CLOCK.now += {"torch": 2.0, "vllm": 1.0}[self.kernel]
        return torch.zeros(x.shape[0], self.weight.codes.shape[0])


def kernel_class(kernel_name: str, whole: bool, max_width: int) -> type[Int4Kernel]:
    class Kernel(Int4Kernel):
        def __init__(self, int8: bool = False) -> None:
            self.int8 = int8

        name = kernel_name
        whole_zeros = whole

        def unsupported(self, spec: LinearSpec) -> str | None:
            return f"wider than {max_width}" if spec.in_features > max_width else None

        def pack(self, weight: GroupedWeight, spec: LinearSpec) -> PackedLinear:
            return Packed(kernel_name, weight)

    return Kernel


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two kernels, of which ``vllm`` is the faster one; returns the log of their products."""
    monkeypatch.setattr(choice, "TorchInt4Kernel", kernel_class("torch", False, 128))
    monkeypatch.setattr(choice, "VllmMixedPrecisionKernel", kernel_class("vllm", True, 64))
    monkeypatch.setattr(choice, "NativeKernel", kernel_class("native", False, 0))
    monkeypatch.setattr(timing, "time", CLOCK)
    RAN.clear()
    return RAN


def maker(weight: torch.Tensor, group_size: int) -> choice.Maker:
    return lambda whole: QUANTIZERS["hqq"](weight, group_size, whole)


def pack(chooser: KernelChooser, spec: LinearSpec = SPEC) -> Packed:
    ones = WEIGHT.new_ones(spec.out_features, spec.in_features)
    packed = chooser.pack(spec, maker(ones, spec.group_size))
    assert isinstance(packed, Packed)
    return packed


def test_the_fastest_kernel_is_taken_and_measured_once_per_shape(timed: list[str]) -> None:
    chooser = KernelChooser()
    assert pack(chooser).kernel == "vllm"
    assert timed == ["vllm", "torch"] * choice.REPEATS  # they take turns
    assert pack(chooser).kernel == "vllm"
    assert len(timed) == 2 * choice.REPEATS
    assert pack(chooser, spec_of(32, 32, 32)).kernel == "vllm"
    assert len(timed) == 4 * choice.REPEATS


def test_a_kernel_that_does_not_take_the_shape_is_not_measured(timed: list[str]) -> None:
    chooser = KernelChooser()
    assert pack(chooser, spec_of(128, 32, 32)).kernel == "torch"
    assert timed == []
    assert (chooser.names, chooser.zero_points) == (["torch"], "float")
    pack(chooser)
    assert (chooser.names, chooser.zero_points) == (["torch", "vllm"], "whole")


def test_ranks_take_the_kernel_that_they_agree_on(timed: list[str]) -> None:
    asked: list[str] = []

    def first_ranks(name: str) -> str:
        asked.append(name)
        return "torch"

    chooser = KernelChooser(agree=first_ranks)
    assert pack(chooser).kernel == "torch"
    assert pack(chooser).kernel == "torch"
    # Each rank asks once per shape that it has measured: collective calls stay in step.
    assert asked == ["vllm"]
    pack(chooser, spec_of(128, 32, 32))
    assert asked == ["vllm"]


def test_a_named_kernel_is_the_only_one(timed: list[str]) -> None:
    chooser = KernelChooser("torch")
    assert pack(chooser).kernel == "torch"
    assert timed == []


@pytest.mark.parametrize("name", ["torch", "vllm"])
def test_zero_points_are_whole_where_the_kernel_needs_them(name: str, timed: list[str]) -> None:
    packed = KernelChooser(name).pack(SPEC, maker(WEIGHT, 32))
    assert isinstance(packed, Packed)
    expected = QUANTIZERS["hqq"](WEIGHT, 32, whole_zeros=name == "vllm")
    assert torch.equal(packed.weight.zeros, expected.zeros)
    assert torch.equal(packed.weight.codes, expected.codes)


@pytest.mark.usefixtures("timed")
def test_no_kernel_names_the_shape_and_every_reason() -> None:
    with pytest.raises(RiverError) as error:
        KernelChooser().pack(spec_of(256, 32, 64), maker(torch.ones(32, 256), 64))
    text = str(error.value)
    assert "256 -> 32" in text and "groups of 64" in text
    assert "torch: wider than 128" in text and "vllm: wider than 64" in text
