"""4-bit products of Intel's auto-round-lib (BesTLA) beside River's own, by number of rows.

Its package is not installed beside vLLM: ``--package`` names the ``site-packages`` of an
environment of its own, with the same Python and torch. It takes float32 activations and scales;
others end in wrong sums and a damaged heap (docs/experiments.md). Asymmetric weights, one process,
products in turn, weights from copies larger than the cache; medians in microseconds.

    python experiments/auto_round.py --package ENV/lib/python3.11/site-packages
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from kernel_table import CACHE, Product, backbone, rotate
from servers import machine
from timing import medians
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel

from river_vllm.kernels.base import LinearSpec
from river_vllm.kernels.native.kernel import NativeKernel
from river_vllm.quantization import QUANTIZERS
from river_vllm.quantization.groups import GroupedWeight

COMPUTE = ("int8", "bf16")
OURS = {"native int8": NativeKernel(int8=True), "native": NativeKernel()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", type=Path, required=True, help="site-packages that holds it")
    parser.add_argument("--shapes", nargs="+", default=["1536x8960", "8960x1536"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    sys.path.append(str(args.package))  # after this environment's own packages
    import auto_round_kernel

    torch.set_num_threads(args.threads)
    print(f"{machine()}, {args.threads} threads")
    with set_current_vllm_config(VllmConfig()), tempfile.NamedTemporaryFile() as file:
        init_distributed_environment(1, 0, f"file://{file.name}.init", 0, "gloo")
        initialize_model_parallel(1)
        for shape in args.shapes:
            table(auto_round_kernel, shape, args)


def table(peer: Any, shape: str, args: argparse.Namespace) -> None:
    in_features, out_features = map(int, shape.split("x"))
    spec = LinearSpec(
        in_features, out_features, args.group_size, torch.bfloat16, torch.device("cpu")
    )
    copies = max(2, CACHE // (in_features * out_features // 2))
    weight = torch.randn(out_features, in_features).mul_(0.02).bfloat16()
    made = QUANTIZERS["rtn"](weight, args.group_size, integer_zeros=True)
    products: dict[str, list[Product]] = {"bf16": [backbone(weight) for _ in range(copies)]}
    for name, kernel in OURS.items():
        packed = [kernel.pack(made, spec) for _ in range(copies)]
        products[name] = [lambda x, p=p: p.apply(x, None) for p in packed]
    for compute in COMPUTE:
        products[f"auto-round {compute}"] = [
            product(peer, made, compute, args.group_size) for _ in range(copies)
        ]
    print(f"\n{in_features} -> {out_features}\n\n| rows | {' | '.join(products)} |")
    print("|---" * (len(products) + 1) + "|")
    expected = None
    for rows in args.rows:
        x = torch.randn(rows, in_features).bfloat16()
        turns = []
        for name, copied in products.items():
            # Its activations are widened before the clock runs.
            given = x.float() if name.startswith("auto-round") else x
            found = copied[0](given).float()
            expected = found if name == "bf16" else expected
            if not (found - expected).norm() < 0.2 * expected.norm():  # 4-bit weights: about 0.1
                raise RuntimeError(f"{name}, {rows} rows: not the product")
            turns.append(partial(rotate, cycle(copied), given))
        cells = " | ".join(f"{seconds * 1e6:.0f}" for seconds in medians(turns, args.repeats))
        print(f"| {rows} | {cells} |", flush=True)


def product(peer: Any, weight: GroupedWeight, compute: str, group: int) -> Product:
    """Its product of an asymmetric weight, with integer zero points."""
    out_features, in_features = weight.codes.shape
    form = (out_features, in_features, group, compute, "int4", "fp32", True)
    packed = peer.repack_quantized_weight(
        (weight.codes.to(torch.int8) - 8).t().contiguous(),
        weight.scales.float().t().contiguous(),
        (weight.zeros.round() - 8).to(torch.int8).t().contiguous(),
        *form[2:],
    )
    bias = torch.empty(0)
    return lambda x: peer.woqgemm(x, packed, bias, *form)


if __name__ == "__main__":
    main()
