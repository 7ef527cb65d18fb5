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
    exact: torch.Tensor | None
    """Expected to the bit."""
    near: torch.Tensor | None = None
    """Expected but for a row's rounding: bf16 ``[m, n]``."""


def _bytes(*tensors: torch.Tensor | None) -> bytes:
    there = [t for t in tensors if t is not None]
    return b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in there)


def _header(operation: str, m: int, k: int, n: int, group: int, extra: bool) -> bytes:
    return _bytes(torch.tensor([OPERATIONS.index(operation), m, k, n, group, 2, int(extra)]))


def _product(operation: str, rows: int, spec: LinearSpec, bias: torch.Tensor | None) -> Case:
    kernel = NativeKernel(operation == "int8", scalar_backend())
    packed = kernel.pack(grouped_weight(spec, integer=False), spec)
    assert isinstance(packed, _NativePacked)
    x = inputs(rows, spec)
    if operation == "int8":
        x *= torch.logspace(-20, 20, rows).view(-1, 1).bfloat16()
    m, k, n = rows, spec.in_features, spec.out_features
    given = _header(operation, m, k, n, spec.group_size, bias is not None) + _bytes(
        packed._codes, packed._scales, packed._zeros, x, bias
    )
    expected = packed.apply(x, bias)
    label = f"{operation} {k} -> {n}, {rows} rows"
    if operation == "int8":
        return Case(label, given, expected)
    return Case(label, given, None, expected)


def _transition(rows: int, width: int, added: bool) -> Case:
    generator = torch.Generator().manual_seed(rows)
    before = torch.randn(rows, width, generator=generator)
    hidden, other = (torch.randn(rows, width, generator=generator).bfloat16() for _ in range(2))
    residual = other if added else None
    after, similarity = scalar_backend().transition(before, hidden, residual)
    given = _header("transition", rows, width, 0, 1, added) + _bytes(before, hidden, residual)
    assert similarity is not None
    return Case(f"transition, {rows} rows", given, torch.cat([after.flatten(), similarity]))


def _candidates(rows: int, width: int) -> Case:
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(n, width, generator=generator).bfloat16() for n in (rows, 50))
    chosen = torch.randint(50, (rows, 17), generator=generator)
    expected = scalar_backend().candidates(x, weight, chosen)
    given = _header("candidates", rows, width, 50, 17, False) + _bytes(x, weight, chosen)
    return Case(f"candidates, {rows} rows", given, expected)


def _dense(rows: int, width: int, biased: bool) -> Case:
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(n, width, generator=generator).bfloat16() for n in (rows, 17))
    bias = torch.randn(17, generator=generator).bfloat16() if biased else None
    expected = scalar_backend().dense(x, weight, bias)
    given = _header("dense", rows, width, 17, 1, biased) + _bytes(x, weight, bias)
    return Case(f"dense, {rows} rows", given, None, expected)


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
        expected = case.exact if case.exact is not None else case.near
        assert expected is not None
        part, out = out[: expected.nbytes], out[expected.nbytes :]
        found = torch.frombuffer(bytearray(part), dtype=expected.dtype).view(expected.shape)
        if case.exact is not None:
            assert torch.equal(found, expected), f"{backend}: {case.label}"
        else:
            error = (found.float() - expected.float()).norm(dim=1) / expected.float().norm(dim=1)
            assert float(error.max()) < TOLERANCE, f"{backend}: {case.label}"
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
