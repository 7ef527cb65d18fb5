"""Back ends on CPUs that this machine is not: under qemu, against the plain one in this process.

On x86-64 it is the installed library that runs, so what is tested is its own choice; for Arm the
back ends are compiled by a cross compiler.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from river_vllm.kernels.base import LinearSpec
from river_vllm.kernels.native import build
from river_vllm.kernels.native.kernel import NativeKernel, _NativePacked
from tests.unit.kernels.support import (
    TOLERANCE,
    grouped_weight,
    inputs,
    running_backends,
    scalar_backend,
    spec_of,
)

DRIVER = Path(__file__).with_name("driver.cpp")
CROSS = "aarch64-linux-gnu-g++"
OPERATIONS = ("int8", "bf16", "transition", "candidates", "dense")
SHAPES = [(128, 16, 128), (192, 80, 64), (96, 32, 32)]
ROWS = (1, 2, 3, 4, 5, 9, 33)

pytestmark = pytest.mark.skipif(not running_backends(), reason="the kernel library is not built")


@dataclass
class Case:
    """What the driver is given, and what the plain back end of this process makes of it."""

    label: str
    given: bytes
    expected: torch.Tensor
    exact: bool = True
    """To the bit, or but for a row's rounding."""

    def agrees(self, found: torch.Tensor) -> bool:
        if self.exact:
            return torch.equal(found, self.expected)
        missed = (found.float() - self.expected.float()).norm(dim=1)
        return bool((missed < TOLERANCE * self.expected.float().norm(dim=1)).all())


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def _bytes(*tensors: torch.Tensor | None) -> bytes:
    there = [t for t in tensors if t is not None]
    return b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in there)


def _header(operation: str, m: int, k: int, n: int, group: int, extra: bool) -> bytes:
    return _bytes(torch.tensor([OPERATIONS.index(operation), m, k, n, group, 2, int(extra)]))


def _product(operation: str, rows: int, spec: LinearSpec, bias: torch.Tensor | None) -> Case:
    kernel = NativeKernel(operation == "int8", scalar_backend)
    packed = kernel.pack(grouped_weight(spec, integer=False), spec)
    assert isinstance(packed, _NativePacked)
    x = inputs(rows, spec)
    if operation == "int8":
        x *= torch.logspace(-20, 20, rows).view(-1, 1).bfloat16()
    header = _header(
        operation, rows, spec.in_features, spec.out_features, spec.group_size, bias is not None
    )
    given = header + _bytes(packed._codes, packed._scales, packed._zeros, x, bias)
    return Case(
        f"{operation} {spec}, {rows} rows", given, packed.apply(x, bias), operation == "int8"
    )


def _transition(rows: int, width: int, added: bool) -> Case:
    before, hidden = _random(rows, width).float(), _random(rows, width + 1)[:, :width].contiguous()
    residual = _random(rows, width + 2)[:, :width].contiguous() if added else None
    after, similarity = scalar_backend().transition(before, hidden, residual)
    given = _header("transition", rows, width, 0, 1, added) + _bytes(before, hidden, residual)
    assert similarity is not None
    return Case(f"transition, {rows} rows", given, torch.cat([after.flatten(), similarity]))


def _candidates(rows: int, width: int) -> Case:
    x, weight = _random(rows, width), _random(50, width)
    chosen = torch.arange(rows * 17).view(rows, 17) * 7 % 50
    expected = scalar_backend().candidates(x, weight, chosen)
    given = _header("candidates", rows, width, 50, 17, False) + _bytes(x, weight, chosen)
    return Case(f"candidates, {rows} rows", given, expected)


def _dense(rows: int, width: int, biased: bool) -> Case:
    x, weight, bias = _random(rows, width), _random(17, width), _random(17) if biased else None
    expected = scalar_backend().dense(x, weight, bias)
    given = _header("dense", rows, width, 17, 1, biased) + _bytes(x, weight, bias)
    return Case(f"dense, {rows} rows", given, expected, exact=False)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    found = []
    for shape in SHAPES:
        spec = spec_of(*shape)
        for rows in ROWS:
            bias = torch.randn(spec.out_features).bfloat16() if rows % 2 else None
            found += [_product(operation, rows, spec, bias) for operation in OPERATIONS[:2]]
    for rows in (1, 7, 64):
        found += [_transition(rows, 1001, added) for added in (True, False)]
        found.append(_candidates(rows, 203))
        found.append(_dense(rows, 203, rows == 7))
    return found


def _run(command: list[str], given: bytes = b"") -> bytes:
    done = subprocess.run(command, input=given, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}: {done.returncode}, {done.stderr.decode()}"
    return done.stdout


def _agrees(command: list[str], backend: str, cases: list[Case]) -> None:
    out = _run([*command, backend], b"".join(case.given for case in cases))
    for case in cases:
        part, out = out[: case.expected.nbytes], out[case.expected.nbytes :]
        found = torch.frombuffer(bytearray(part), dtype=case.expected.dtype)
        assert case.agrees(found.view(case.expected.shape)), f"{backend}: {case.label}"
    assert out == b""


def _needs(*programs: str) -> pytest.MarkDecorator:
    missing = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not here: {', '.join(missing)}")


def _link(compiler: str, folder: Path, *inputs: str) -> str:
    driver = folder / "driver"
    _run([compiler, "-O1", "-std=c++17", "-fopenmp", f"-I{build.FOLDER}", str(DRIVER), *inputs,
          "-o", str(driver)])  # fmt: skip
    return str(driver)


@pytest.fixture(scope="module")
def x86(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With the library as it is installed."""
    if platform.machine() != "x86_64":
        pytest.skip("the installed library is not for x86-64")
    folder = tmp_path_factory.mktemp("x86")
    return _link("g++", folder, str(build.LIBRARY), f"-Wl,-rpath,{build.FOLDER}")


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("arm")
    objects, left_out = build.compile_objects([CROSS], folder, "aarch64")
    assert left_out == []
    return _link(CROSS, folder, "-static", *map(str, objects))


def _knows_avx2() -> bool:
    """qemu emulates AVX2 from 7.2 on."""
    said = _run(["qemu-x86_64", "--version"]).decode()
    found = re.search(r"version (\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= (7, 2)


@_needs("qemu-x86_64", "g++")
@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ("Nehalem", ["scalar"]),  # SSE4.2
        ("SandyBridge", ["scalar"]),  # AVX
        ("Haswell", ["avx2", "scalar"]),
        ("Haswell,-fma", ["scalar"]),
    ],
)
def test_x86_without_avx512(cpu: str, expected: list[str], x86: str, cases: list[Case]) -> None:
    if not _knows_avx2():
        pytest.skip("qemu-x86_64 is older than 7.2")
    command = ["qemu-x86_64", "-cpu", cpu, x86]
    assert _run(command).decode().split() == expected
    # An instruction that the CPU has not would end the process.
    _agrees(command, expected[0], cases)


@_needs("qemu-aarch64", CROSS)
@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ("cortex-a53", ["scalar"]),  # Armv8.0: no dot product
        ("cortex-a76", ["neon", "scalar"]),
        ("neoverse-n1", ["neon", "scalar"]),
        ("max", ["neon", "scalar"]),
    ],
)
def test_arm(cpu: str, expected: list[str], arm: str, cases: list[Case]) -> None:
    command = ["qemu-aarch64", "-cpu", cpu, arm]
    assert _run(command).decode().split() == expected
    _agrees(command, expected[0], cases)
