"""A 12-bit form of bf16 weights without loss, and its product beside vLLM's own, on one layer.

A weight is its low byte and a 4-bit code of its high byte (sign and upper seven bits of the
exponent): one of the 15 that are the most frequent in the tensor. What has another one is an
escape: zero in its place, and in a list of column and value for each output, which is added after
the sum. ``twelve_bit.cpp`` reads the form, compiled here for AVX2 and for AVX-512.

The real weights of one decoder layer, q, k and v as one and gate and up as one, as vLLM has them.
Beside it vLLM's own product and River's of bf16 weights (``dense.h``), which rounds as this one
does. All take turns, each through copies of its own; medians. Every product is first compared with
float64.

    python experiments/twelve_bit.py models/qwen-coder-1.5b [--json FILE]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from kernel_table import Product, backbone
from safetensors import safe_open
from servers import machine
from timing import medians
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel

from river_vllm.kernels.native import build
from river_vllm.kernels.native.library import backends
from river_vllm.kernels.native.pages import HugePages
from river_vllm.step import Dense

PROJECTIONS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
ISAS = ("avx2", "avx512")
ROWS = range(1, 10)
TOGETHER, BLOCK = 4, 128
"""Outputs whose blocks lie by turns, and weights of a block, as in ``twelve_bit.cpp``."""
ESCAPE = 15

Layer = Mapping[str, Product]
Tensors = Mapping[str, torch.Tensor]
"""Of each projection."""


@dataclass(frozen=True)
class TwelveBit:
    """A weight ``[N, K]``; ``blocks [N / 4, K / 128, 4, 192]`` uint8, escapes by output."""

    blocks: torch.Tensor
    table: torch.Tensor
    starts: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        groups, blocks, _, _ = self.blocks.shape
        return groups * TOGETHER, blocks * BLOCK


def encode(weight: torch.Tensor) -> TwelveBit:
    """The form of a bf16 weight ``[N, K]``.

    Raises:
        ValueError: N is no multiple of 4 or K none of 128.
    """
    outputs, width = weight.shape
    if outputs % TOGETHER or width % BLOCK:
        raise ValueError(f"[{outputs}, {width}]: must be multiples of {TOGETHER} and {BLOCK}")
    low, high = weight.contiguous().view(torch.uint8).view(outputs, width, 2).unbind(-1)
    counts = torch.bincount(high.flatten(), minlength=256)
    counts[0] = 0  # zeros are what an escape leaves in its place
    table = torch.zeros(16, dtype=torch.uint8)
    table[:ESCAPE] = counts.topk(ESCAPE).indices
    code_of = torch.full((256,), ESCAPE, dtype=torch.uint8)
    code_of[table[:ESCAPE].long()] = torch.arange(ESCAPE, dtype=torch.uint8)
    codes = code_of[high.long()]
    rows, columns = ((codes == ESCAPE) & (weight.view(torch.int16) != 0)).nonzero(as_tuple=True)
    starts = torch.zeros(outputs + 1, dtype=torch.int32)
    starts[1:] = torch.bincount(rows, minlength=outputs).cumsum(0)
    first, second = in_blocks(codes).unbind(-2)
    lows = in_blocks(low.where(codes != ESCAPE, 0)).flatten(-2)
    blocks = torch.cat((lows, first | second << 4), -1)
    return TwelveBit(blocks, table.repeat(4), starts, columns.int(), weight[rows, columns])


def decode(packed: TwelveBit) -> torch.Tensor:
    """The bf16 weight ``[N, K]``."""
    lows, pairs = packed.blocks.split((BLOCK, BLOCK // 2), -1)
    codes = torch.cat((pairs & 15, pairs >> 4), -1)
    words = torch.stack((lows, packed.table[codes.long()]), -1).view(torch.bfloat16)
    outputs, width = packed.shape
    weight = torch.empty(outputs * width, dtype=torch.bfloat16)
    weight[in_blocks(torch.arange(len(weight)).view(packed.shape)).flatten()] = words.flatten()
    weight = weight.view(packed.shape)
    rows = torch.arange(outputs).repeat_interleave(packed.starts.diff())
    weight[rows, packed.columns.long()] = packed.values
    return weight


def in_blocks(values: torch.Tensor) -> torch.Tensor:
    """``[N, K]`` → ``[N / 4, K / 128, 4, 2, 64]``, in the order in which registers take bytes.

    Of a lane's 16 bytes the first eight become its words in one register, the last eight in
    another. Either register shall hold neighbours: the first eight of each lane are from the first
    32 weights, the last eight from the others.
    """
    outputs, width = values.shape
    split = values.view(outputs // TOGETHER, TOGETHER, width // BLOCK, 2, 2, 4, 8)
    return split.permute(0, 2, 1, 3, 5, 4, 6).flatten(-3)


def compiled(isa: str, folder: Path) -> Callable[..., None]:
    """``twelve_bit`` of ``twelve_bit.cpp`` for one instruction set.

    Raises:
        BuildError: there is no g++.
        CalledProcessError: it fails.
    """
    target = folder / f"{isa}.so"
    options = (*build.FLAGS, *build.BACKENDS["x86_64"][isa], f"-I{build.FOLDER}", "-shared")
    source = Path(__file__).with_suffix(".cpp")
    subprocess.run([*build.find_compiler(), *options, str(source), "-o", str(target)], check=True)
    function = ctypes.CDLL(str(target)).twelve_bit
    function.argtypes = (*[ctypes.c_void_p] * 8, *[ctypes.c_int64] * 3, ctypes.c_int)
    function.restype = None
    return function


def twelve_bit(function: Callable[..., None], weight: torch.Tensor) -> Product:
    """The product of ``x [1 to 9, K]``, bf16, by the weight's 12-bit form."""
    form = encode(weight)
    parts = (HugePages().hold(form.blocks), form.table, form.starts, form.columns, form.values)

    def product(x: torch.Tensor) -> torch.Tensor:
        y, widened = x.new_empty(len(x), len(weight)), torch.empty(x.shape)
        pointers = (tensor.data_ptr() for tensor in (*parts, x, widened, y))
        function(*pointers, len(x), *weight.shape, torch.get_num_threads())
        return y

    return product


def dense(function: Dense, weight: torch.Tensor) -> Product:
    held = HugePages().hold(weight)
    return lambda x: function(x, held, None)


def kinds(folder: Path) -> dict[str, Callable[[torch.Tensor], Product]]:
    """What makes each kind of product; vLLM's own is the first."""
    running = {backend.name: backend.dense for backend in backends()}
    found: dict[str, Callable[[torch.Tensor], Product]] = {"vLLM": backbone}
    for isa in (isa for isa in ISAS if isa in running):
        found[f"bf16 {isa}"] = partial(dense, running[isa])
        found[f"12 bits {isa}"] = partial(twelve_bit, compiled(isa, folder))
    return found


def read(model: Path) -> dict[str, torch.Tensor]:
    """The weights of the projections of the model's middle layer."""
    count = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    prefix = f"model.layers.{count // 2}"
    with safe_open(model / "model.safetensors", "pt") as file:
        return {
            name: torch.cat([file.get_tensor(f"{prefix}.{part}.weight") for part in parts])
            for name, parts in PROJECTIONS.items()
        }


def check(kind: str, layer: Layer, weights: Tensors, inputs: Tensors) -> None:
    """Every number of rows against float64.

    Raises:
        RuntimeError: it is off by more than bf16's rounding and that of sums in float32.
    """
    for name, weight in weights.items():
        x, wide = inputs[name].double(), weight.double()
        exact = x @ wide.t()
        allowed = exact.abs() / 256 + x.abs() @ wide.t().abs() * 1e-5
        for rows in ROWS:
            off = layer[name](inputs[name][:rows]) - exact[:rows]
            if not (off.abs() <= allowed[:rows]).all():
                raise RuntimeError(f"{kind}, {name}, {rows} rows: not the product")


def run(copies: Iterator[Layer], inputs: Tensors, rows: int) -> None:
    for name, product in next(copies).items():
        product(inputs[name][:rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a bf16 checkpoint")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--copies", type=int, default=4, help="of the layer, each product's own")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    weights = read(args.model)
    escapes = {name: share_of_escapes(weight) for name, weight in weights.items()}
    shares = ", ".join(f"{name} {share:.1e}" for name, share in escapes.items())
    print(f"{args.model.name}, {machine()}, {args.threads} threads; escapes: {shares}")
    inputs = {name: torch.randn(ROWS[-1], w.shape[1]).bfloat16() for name, w in weights.items()}
    turns: dict[str, Iterator[Layer]] = {}
    with set_current_vllm_config(VllmConfig()), tempfile.TemporaryDirectory() as folder:
        init_distributed_environment(1, 0, f"file://{folder}/init", 0, "gloo")
        initialize_model_parallel(1)
        for kind, make in kinds(Path(folder)).items():
            copies = [{n: make(w) for n, w in weights.items()} for _ in range(args.copies)]
            check(kind, copies[0], weights, inputs)
            turns[kind] = cycle(copies)
    print(f"\n| rows | {' | '.join(turns)} |")
    print("|---" * (len(turns) + 1) + "|", flush=True)
    size = sum(weight.numel() for weight in weights.values())
    results = []
    for rows in ROWS:
        calls = [partial(run, copies, inputs, rows) for copies in turns.values()]
        seconds = dict(zip(turns, medians(calls, args.repeats, warm=1), strict=True))
        found = {
            kind: {
                "ms": taken * 1e3,
                "gb_per_s": size * (1.5 if kind.startswith("12") else 2) / taken / 1e9,
                "ratio": seconds["vLLM"] / taken,
            }
            for kind, taken in seconds.items()
        }
        cells = (
            f"{f['ms']:.2f} ms, {f['gb_per_s']:.1f} GB/s, {f['ratio']:.2f}x" for f in found.values()
        )
        print(f"| {rows} | {' | '.join(cells)} |", flush=True)
        results.append({"rows": rows, "kinds": found})
    if args.json:
        report = {"machine": machine(), "threads": args.threads, "escapes": escapes}
        args.json.write_text(json.dumps({**report, "results": results}, indent=1))


def share_of_escapes(weight: torch.Tensor) -> float:
    """
    Raises:
        RuntimeError: the form does not give the weight back, bit for bit.
    """
    form = encode(weight)
    if not torch.equal(decode(form).view(torch.int16), weight.view(torch.int16)):
        raise RuntimeError("the form does not give the weight back")
    return len(form.values) / weight.numel()


if __name__ == "__main__":
    main()
