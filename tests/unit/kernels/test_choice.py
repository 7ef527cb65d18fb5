"""Which kernel a projection shape gets."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from river_vllm.errors import RiverError
from river_vllm.kernels import choice, vllm_mp
from river_vllm.kernels.base import Int4Kernel, LinearSpec, PackedLinear
from river_vllm.kernels.choice import KernelChooser
from river_vllm.kernels.native import library
from river_vllm.kernels.vllm_mp import VllmMixedPrecisionKernel
from river_vllm.weights.quantizers import QUANTIZERS, GroupedWeight
from tests.unit.kernels.support import assert_product, grouped_weight, inputs, spec_of

SPEC = spec_of(64, 32, 32)
WEIGHT = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).bfloat16()


class Packed(PackedLinear):
    nbytes = 0

    def __init__(self, kernel: str, weight: GroupedWeight) -> None:
        self.kernel, self.weight = kernel, weight

    def apply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        raise AssertionError("no product is called to choose a kernel")


def kernel_class(kernel_name: str, integer: bool, max_width: int, rounds: bool) -> type[Int4Kernel]:
    class Kernel(Int4Kernel):
        def __init__(self, int8: bool = False) -> None:
            self.rounds_activations = int8 and rounds

        name = kernel_name
        integer_zeros = integer

        def unsupported(self, spec: LinearSpec) -> str | None:
            return f"wider than {max_width}" if spec.in_features > max_width else None

        def pack(self, weight: GroupedWeight, spec: LinearSpec) -> PackedLinear:
            return Packed(kernel_name, weight)

    return Kernel


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that take inputs of up to so many features, and compute nothing."""
    monkeypatch.setattr(choice, "NativeKernel", kernel_class("native", False, 64, True))
    monkeypatch.setattr(choice, "TorchInt4Kernel", kernel_class("torch", False, 128, False))
    monkeypatch.setattr(choice, "VllmMixedPrecisionKernel", kernel_class("vllm", True, 256, True))


def maker(weight: torch.Tensor, group_size: int) -> choice.Maker:
    return lambda integer: QUANTIZERS["hqq"](weight, group_size, integer)


def pack(chooser: KernelChooser, spec: LinearSpec = SPEC) -> Packed:
    ones = WEIGHT.new_ones(spec.out_features, spec.in_features)
    packed = chooser.pack(spec, maker(ones, spec.group_size))
    assert isinstance(packed, Packed)
    return packed


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("activations", "width", "expected"),
    [
        ("bf16", 64, "native"),
        ("bf16", 128, "torch"),
        ("bf16", 256, "vllm"),
        ("int8", 64, "native"),
        ("int8", 128, "vllm"),  # before torch's, which does not round
    ],
)
def test_the_first_kernel_of_a_fixed_order_is_taken(
    activations: str, width: int, expected: str
) -> None:
    chooser = KernelChooser(activations=activations)
    assert pack(chooser, spec_of(width, 32, 32)).kernel == expected
    assert (chooser.names, chooser.activations) == ([expected], activations)


@pytest.mark.usefixtures("kernels")
def test_every_shape_has_its_own() -> None:
    chooser = KernelChooser()
    found = [pack(chooser, spec_of(k, 32, 32)).kernel for k in (64, 128, 64)]
    assert found == ["native", "torch", "native"]
    assert (chooser.names, chooser.zero_points) == (["native", "torch"], "float")
    assert pack(chooser, spec_of(256, 32, 32)).kernel == "vllm"
    assert (chooser.names, chooser.zero_points) == (["native", "torch", "vllm"], "integer")


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", ["native", "torch", "vllm"])
def test_a_named_kernel_is_the_only_one(name: str) -> None:
    assert pack(KernelChooser(name)).kernel == name
    with pytest.raises(RiverError, match=f"{name}: wider than") as error:
        pack(KernelChooser(name), spec_of(512, 32, 32))
    for other in {"native", "torch", "vllm"} - {name}:
        assert f"{other}:" not in str(error.value)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", ["native", "torch", "vllm"])
def test_zero_points_are_integers_where_the_kernel_needs_them(name: str) -> None:
    packed = KernelChooser(name).pack(SPEC, maker(WEIGHT, 32))
    assert isinstance(packed, Packed)
    expected = QUANTIZERS["hqq"](WEIGHT, 32, integer_zeros=name == "vllm")
    assert torch.equal(packed.weight.zeros, expected.zeros)
    assert torch.equal(packed.weight.codes, expected.codes)


@pytest.mark.usefixtures("kernels")
def test_weights_without_integer_zero_points_are_not_for_a_kernel_that_needs_them() -> None:
    with pytest.raises(RiverError, match="vllm: needs integer zero points"):
        pack(KernelChooser(integer_zeros=False), spec_of(256, 32, 32))


@pytest.mark.usefixtures("kernels")
def test_no_kernel_names_the_shape_and_every_reason() -> None:
    with pytest.raises(RiverError) as error:
        pack(KernelChooser(), spec_of(512, 32, 64))
    text = str(error.value)
    assert "512 -> 32" in text and "groups of 64" in text
    assert "native: wider than 64" in text
    assert "torch: wider than 128" in text and "vllm: wider than 256" in text


class Heard(logging.Handler):
    """What River's log says while a test runs, whether or not vLLM hands it on to the root."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def heard() -> Iterator[list[str]]:
    from vllm.logger import _print_warning_once

    _print_warning_once.cache_clear()  # a test before this one may have used up a message
    log, handler = logging.getLogger("vllm.river"), Heard()
    log.addHandler(handler)
    yield handler.messages
    log.removeHandler(handler)


@pytest.fixture
def no_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, heard: list[str]
) -> Iterator[list[str]]:
    """As on a machine without a compiler; what the log says."""
    missing = partial(library.backends, tmp_path / "libriver.so")
    monkeypatch.setattr(library, "backends", missing)
    library.backend.cache_clear()
    yield heard
    library.backend.cache_clear()


def test_without_the_library_torch_takes_over(no_library: list[str]) -> None:
    chooser = KernelChooser()
    weight = grouped_weight(SPEC, integer=False)
    for spec in (SPEC, spec_of(64, 48, 32)):
        chooser.pack(spec, lambda _, spec=spec: grouped_weight(spec, integer=False))
    packed = chooser.pack(SPEC, lambda _: weight)
    assert_product(packed, weight, inputs(3, SPEC), None)
    assert chooser.names == ["torch"]
    (message,) = no_library
    assert "libriver.so' is not there" in message
    assert "-m river_vllm.kernels.native.build" in message


@pytest.mark.usefixtures("vllm_world")
def test_without_the_library_int8_becomes_bf16_and_the_log_says_so_once(
    no_library: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_mp, "has_cpu_int4_product", lambda: False)
    chooser = KernelChooser(activations="int8")
    for spec in (SPEC, spec_of(64, 48, 32), SPEC):
        chooser.pack(spec, lambda _, spec=spec: grouped_weight(spec, integer=False))
    assert (chooser.names, chooser.activations) == (["torch"], "bf16")
    (message,) = [m for m in no_library if "activations stay bf16" in m]
    assert "native: not built" in message and "vllm: this build of vLLM has no" in message


@pytest.mark.parametrize("int8", [False, True])
def test_vllms_kernel_is_refused_where_its_build_has_no_product(
    int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one for AVX2 (vLLM issue 55613): its own choice would take it and fail in the step."""
    monkeypatch.setattr(vllm_mp, "has_cpu_int4_product", lambda: False)
    reason = VllmMixedPrecisionKernel(int8).unsupported(SPEC)
    assert reason == "this build of vLLM has no 4-bit product for this CPU"
