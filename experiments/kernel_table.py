"""Time 4-bit products by number of rows: every back end that runs here, torch's and vLLM's.

Cells are ratios to vLLM's own bf16 product of the same shape. Weights rotate through copies larger
than the cache, the products take turns, and each time is a median. The last column is the share of
the read bandwidth that one row reaches. The sum of a large tensor, in the same turns, gives the
bandwidth.

    python experiments/kernel_table.py --shapes 1536x17920 8960x1536 --rows 1 2 4 8 16 32

``--beside LIBRIVER.so`` adds another build of the kernel library, for a comparison in one run.
Intel's product (``auto-round-lib``, float32 activations) is a column where that is installed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from servers import machine
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel

from river_vllm.compat import UnquantizedLinearMethod
from river_vllm.kernels.base import Int4Kernel, LinearSpec, PackedLinear
from river_vllm.kernels.groups import GroupedWeight
from river_vllm.kernels.native.kernel import Backend, HugePages, NativeKernel
from river_vllm.kernels.native.library import backends, load
from river_vllm.kernels.others import TorchInt4Kernel, VllmMixedPrecisionKernel
from river_vllm.weights.quantizers import QUANTIZERS

CACHE = 256 << 20
"""Bytes of 4-bit weights to rotate through."""
READ = 512 << 20
"""Bytes of the tensor whose sum gives the bandwidth."""

Product = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Column:
    """One product with several copies of its weight, and the bytes that it reads."""

    products: list[Product]
    nbytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["1536x17920"], help="in x out features")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--beside", type=Path, metavar="LIBRIVER.so", help="another build")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kernels = {
        "torch": TorchInt4Kernel(),
        "vllm": VllmMixedPrecisionKernel(),
        "vllm int8": VllmMixedPrecisionKernel(int8=True),
        **native_kernels(backends()),
    }
    if find_spec("auto_round_kernel"):
        kernels["auto-round-lib"] = AutoRoundKernel()
    if args.beside:
        kernels |= native_kernels(load(args.beside.resolve()), f"{args.beside.name}: ")
    print(f"{machine()}, {args.threads} threads")
    with set_current_vllm_config(VllmConfig()), tempfile.NamedTemporaryFile() as file:
        init_distributed_environment(1, 0, f"file://{file.name}.init", 0, "gloo")
        initialize_model_parallel(1)
        for shape in args.shapes:
            table(shape, kernels, args)


class AutoRoundKernel(Int4Kernel):
    """As ``QuantLinear`` of ``auto_round_kernel/qlinear.py``, whose product takes float32."""

    name = "auto-round-lib"
    integer_zeros = True

    def unsupported(self, spec: LinearSpec) -> str | None:
        return None

    def pack(self, weight: GroupedWeight, spec: LinearSpec) -> PackedLinear:
        return AutoRoundLinear(weight, spec)


class AutoRoundLinear(PackedLinear):
    def __init__(self, weight: GroupedWeight, spec: LinearSpec) -> None:
        import auto_round_kernel

        how = ("auto", "int4", "fp32", True)  # computed in, stored in, scales, zero points
        self._product = auto_round_kernel.woqgemm
        self._shape = (spec.out_features, spec.in_features, spec.group_size, *how)
        codes, zeros = ((t - 8).to(torch.int8).t() for t in (weight.codes.short(), weight.zeros))
        self._packed: torch.Tensor = auto_round_kernel.repack_quantized_weight(
            *(codes.contiguous(), weight.scales.t().contiguous(), zeros.contiguous()),
            *(spec.group_size, *how),
        )

    def apply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        out: torch.Tensor = self._product(x.float(), self._packed, torch.empty(0), *self._shape)
        return out.to(x.dtype)

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes


def native_kernels(running: list[Backend], prefix: str = "") -> dict[str, Int4Kernel]:
    """Both products of every back end; later ones of the same name are numbered."""
    found: dict[str, Int4Kernel] = {}
    seen: Counter[str] = Counter()
    for backend in running:
        seen[backend.name] += 1
        number = f" ({seen[backend.name]})" if seen[backend.name] > 1 else ""
        for int8 in (False, True):
            kind = "int8" if int8 else "bf16"
            found[f"{prefix}{backend.name}{number} {kind}"] = NativeKernel(
                int8, lambda use=backend: use
            )
    return found


def table(shape: str, kernels: dict[str, Int4Kernel], args: argparse.Namespace) -> None:
    in_features, out_features = map(int, shape.split("x"))
    spec = LinearSpec(
        in_features, out_features, args.group_size, torch.bfloat16, torch.device("cpu")
    )
    copies = max(2, CACHE // (in_features * out_features // 2))
    weight = torch.randn(out_features, in_features).mul_(0.02).bfloat16()
    columns = {"bf16": Column([backbone(weight) for _ in range(copies)], weight.nbytes)}
    made = {whole: QUANTIZERS["hqq"](weight, args.group_size, whole) for whole in (False, True)}
    for name, kernel in kernels.items():
        if kernel.unsupported(spec) is None:
            packed = [kernel.pack(made[kernel.integer_zeros], spec) for _ in range(copies)]
            products: list[Product] = [lambda x, p=p: p.apply(x, None) for p in packed]
            columns[name] = Column(products, packed[0].nbytes)
    # In huge pages, like the packed weights.
    buffer = HugePages().hold(torch.ones(READ // 8, dtype=torch.int64))
    times: dict[int, dict[str, float]] = {}
    bandwidth = 0.0
    for rows in sorted({1, *args.rows}):
        x = torch.randn(rows, in_features).bfloat16()
        turns = [partial(rotate, cycle(column.products), x) for column in columns.values()]
        *found, read = medians([*turns, buffer.sum], args.repeats)
        times[rows] = dict(zip(columns, found, strict=True))
        if rows == 1:
            bandwidth = READ / read
    title = f"{in_features} -> {out_features}, rows"
    print(f"\n| {' | '.join([title, *map(str, times)])} | of {bandwidth / 1e9:.1f} GB/s |")
    print("|---" * (len(times) + 2) + "|")
    for name, column in columns.items():
        if name == "bf16":
            label, cells = "bf16, us", [f"{t[name] * 1e6:.0f}" for t in times.values()]
        else:
            label, cells = name, [f"{t['bf16'] / t[name]:.2f}x" for t in times.values()]
        share = column.nbytes / times[1][name] / bandwidth
        print(f"| {' | '.join([label, *cells])} | {share:.0%} |", flush=True)


def medians(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each call; the calls take turns, so a busy moment affects all."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(1 + repeats):
        for call, seconds in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds[1:]) for seconds in taken]


def rotate(products: Iterator[Product], x: torch.Tensor) -> torch.Tensor:
    return next(products)(x)


def backbone(weight: torch.Tensor) -> Product:
    """vLLM's own product, with the weight repacked for this platform."""
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    method = UnquantizedLinearMethod()
    method.process_weights_after_loading(layer)
    return lambda x: method.apply(layer, x)


if __name__ == "__main__":
    main()
