"""4-bit products by number of rows, as ratios to vLLM's own bf16 product of the same shape.

Weights rotate through copies larger than the cache; the products take turns; medians.

    python experiments/kernel_table.py --shapes 1536x17920 8960x1536 --rows 1 2 4 8 16 32
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel

from river_vllm.compat import UnquantizedLinearMethod
from river_vllm.kernels.base import LinearSpec
from river_vllm.kernels.native.kernel import NativeKernel
from river_vllm.kernels.timing import medians
from river_vllm.kernels.torch_int4 import TorchInt4Kernel
from river_vllm.kernels.vllm_mp import VllmMixedPrecisionKernel
from river_vllm.quantization import QUANTIZERS

KERNELS = {
    "torch": TorchInt4Kernel(),
    "vllm": VllmMixedPrecisionKernel(),
    "native": NativeKernel(),
    "native int8": NativeKernel(int8=True),
    "vllm int8": VllmMixedPrecisionKernel(int8=True),
}
CACHE = 96 << 20
"""Bytes of 4-bit weights to rotate through."""

Product = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["1536x17920"], help="in x out features")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with set_current_vllm_config(VllmConfig()), tempfile.NamedTemporaryFile() as file:
        init_distributed_environment(1, 0, f"file://{file.name}.init", 0, "gloo")
        initialize_model_parallel(1)
        for shape in args.shapes:
            table(shape, args)


def table(shape: str, args: argparse.Namespace) -> None:
    in_features, out_features = map(int, shape.split("x"))
    spec = LinearSpec(
        in_features, out_features, args.group_size, torch.bfloat16, torch.device("cpu")
    )
    copies = max(2, CACHE // (in_features * out_features // 2))
    weight = torch.randn(out_features, in_features).mul_(0.02).bfloat16()
    products: dict[str, list[Product]] = {"bf16": [backbone(weight) for _ in range(copies)]}
    for name, kernel in KERNELS.items():
        if kernel.unsupported(spec) is None:
            made = QUANTIZERS["hqq"](weight, args.group_size, whole_zeros=kernel.whole_zeros)
            packed = [kernel.pack(made, spec) for _ in range(copies)]
            products[name] = [lambda x, p=p: p.apply(x, None) for p in packed]
    names = [name for name in products if name != "bf16"]
    print(f"\n{in_features} -> {out_features}, {args.threads} threads\n")
    print(f"| rows | bf16, us | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}")
    for rows in args.rows:
        x = torch.randn(rows, in_features).bfloat16()
        turns = [partial(rotate, cycle(copied), x) for copied in products.values()]
        median = dict(zip(products, medians(turns, args.repeats), strict=True))
        cells = " | ".join(f"{median['bf16'] / median[name]:.2f}x" for name in names)
        print(f"| {rows} | {median['bf16'] * 1e6:.0f} | {cells} |", flush=True)


def rotate(products: Iterator[Product], x: torch.Tensor) -> torch.Tensor:
    return next(products)(x)


def backbone(weight: torch.Tensor) -> Product:
    """vLLM's own product, in the form into which it repacks a weight on this platform."""
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    method = UnquantizedLinearMethod()
    method.process_weights_after_loading(layer)
    return lambda x: method.apply(layer, x)


if __name__ == "__main__":
    main()
