"""Which kernel a projection shape gets."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from river_vllm.errors import RiverError
from river_vllm.kernels import choice, others
from river_vllm.kernels.base import Int4Kernel, LinearSpec, PackedLinear
from river_vllm.kernels.choice import KernelChooser
from river_vllm.kernels.groups import GroupedWeight
from river_vllm.kernels.native import library
from river_vllm.kernels.others import VllmMixedPrecisionKernel
from river_vllm.weights.quantizers import QUANTIZERS
from tests.unit.kernels.support import grouped_weight, spec_of

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
        def __init__(self, int8: bool = False, *_: object) -> None:
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
    packed = pack(chooser, spec_of(256, 32, 32))
    assert torch.equal(packed.weight.zeros, packed.weight.zeros.round())


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", ["native", "torch", "vllm"])
def test_a_named_kernel_is_the_only_one(name: str) -> None:
    assert pack(KernelChooser(name)).kernel == name
    with pytest.raises(RiverError, match=f"{name}: wider than") as error:
        pack(KernelChooser(name), spec_of(512, 32, 32))
    for other in {"native", "torch", "vllm"} - {name}:
        assert f"{other}:" not in str(error.value)


@pytest.mark.usefixtures("kernels")
def test_weights_without_integer_zero_points_are_not_for_a_kernel_that_needs_them() -> None:
    with pytest.raises(RiverError, match="vllm: needs integer zero points"):
        pack(KernelChooser(integer_zeros=False), spec_of(256, 32, 32))


@pytest.mark.usefixtures("kernels")
def test_where_there_is_none_the_shape_and_every_reason_are_named() -> None:
    with pytest.raises(RiverError) as error:
        pack(KernelChooser(), spec_of(512, 32, 64))
    assert all(f"{name}: wider than" in str(error.value) for name in ("native", "torch", "vllm"))
    assert "512 -> 32" in str(error.value)


@pytest.fixture
def no_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, warnings: list[str]
) -> Iterator[list[str]]:
    """As on a machine without a compiler; what the log says."""
    from vllm.logger import _print_warning_once

    _print_warning_once.cache_clear()  # a test before this one may have used up a message
    missing = partial(library.backends, tmp_path / "libriver.so")
    monkeypatch.setattr(library, "backends", missing)
    library.backend.cache_clear()
    yield warnings
    library.backend.cache_clear()


@pytest.mark.usefixtures("vllm_world")
def test_without_the_library_torch_takes_over_in_bf16_and_the_log_says_so_once(
    no_library: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(others, "has_cpu_int4_product", lambda: False)
    chooser = KernelChooser(activations="int8")
    for spec in (SPEC, spec_of(64, 48, 32), SPEC):
        chooser.pack(spec, lambda _, spec=spec: grouped_weight(spec, integer=False))
    assert (chooser.names, chooser.activations) == (["torch"], "bf16")
    missing, stays = no_library
    assert "libriver.so" in missing and "-m river_vllm.kernels.native.build" in missing
    assert "activations stay bf16" in stays and "native" in stays and "vllm" in stays


def test_vllms_kernel_is_refused_where_its_build_has_no_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The one for AVX2 (vLLM issue 55613): its own choice would take it and fail in the step."""
    monkeypatch.setattr(others, "has_cpu_int4_product", lambda: False)
    for int8 in (False, True):
        assert VllmMixedPrecisionKernel(int8).unsupported(SPEC) is not None
