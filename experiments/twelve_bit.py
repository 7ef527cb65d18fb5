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
from river_vllm.kernels.native.dense import NativeDense
from river_vllm.kernels.native.library import backends
from river_vllm.kernels.native.pages import HugePages

PROJECTIONS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
ISAS = ("avx2", "avx512")
MOST_ROWS = 9
TOGETHER, BLOCK = 4, 128
"""Outputs whose blocks lie by turns, and weights of a block, as in ``twelve_bit.cpp``."""
ESCAPE = 15

Layer = Mapping[str, Product]
Make = Callable[[str, torch.Tensor], Product]


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
    codes = torch.stack((pairs & 15, pairs >> 4), -2)
    words = torch.stack((lows.view(codes.shape), packed.table[codes.long()]), -1)
    weight = out_of_blocks(words.view(torch.bfloat16).squeeze(-1))
    rows = torch.arange(len(weight)).repeat_interleave(packed.starts.diff())
    weight[rows, packed.columns.long()] = packed.values
    return weight


def in_blocks(values: torch.Tensor) -> torch.Tensor:
    """``[N, K]`` → ``[N / 4, K / 128, 4, 2, 64]``, in the order in which registers interleave bytes.

    Of a lane's 16 bytes the first eight become its words in one register, the last eight in
    another. Either register shall hold neighbours: the first eight of each lane are from the first
    32 weights, the last eight from the others.
    """
    outputs, width = values.shape
    split = values.view(outputs // TOGETHER, TOGETHER, width // BLOCK, 2, 2, 4, 8)
    return split.permute(0, 2, 1, 3, 5, 4, 6).flatten(-3)


def out_of_blocks(values: torch.Tensor) -> torch.Tensor:
    """``in_blocks`` undone."""
    groups, blocks = values.shape[:2]
    split = values.unflatten(-1, (4, 2, 8)).permute(0, 2, 1, 3, 5, 4, 6)
    return split.reshape(groups * TOGETHER, blocks * BLOCK)


@dataclass(frozen=True)
class Exact:
    """A product of nine rows in float64, and the sum of its terms' magnitudes."""

    x: torch.Tensor
    y: torch.Tensor
    magnitude: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor) -> Exact:
        x = torch.randn(MOST_ROWS, weight.shape[1]).bfloat16()
        wide, weight = x.double(), weight.double()
        return cls(x, wide @ weight.t(), wide.abs() @ weight.abs().t())


class _Struct(ctypes.Structure):
    """``struct TwelveBit`` of ``twelve_bit.cpp``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("blocks", "table", "starts", "columns", "values")),
        *((name, ctypes.c_int64) for name in ("n", "k")),
    )


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
    function.argtypes = (*[ctypes.c_void_p] * 4, ctypes.c_int64, ctypes.c_int)
    function.restype = None
    return function


def twelve_bit(function: Callable[..., None], packed: TwelveBit) -> Product:
    """The product of ``x [1 to 9, K]``, bf16, → ``[…, N]``."""
    outputs, width = packed.shape
    blocks = HugePages().hold(packed.blocks)
    parts = (blocks, packed.table, packed.starts, packed.columns, packed.values)
    struct = _Struct(*(part.data_ptr() for part in parts), outputs, width)

    def product(x: torch.Tensor, _held: object = parts) -> torch.Tensor:
        y, values = x.new_empty(len(x), outputs), torch.empty(x.shape)
        pointers = (x.data_ptr(), values.data_ptr(), y.data_ptr())
        function(ctypes.addressof(struct), *pointers, len(x), torch.get_num_threads())
        return y

    return product


def layer(model: Path, index: int | None) -> dict[str, torch.Tensor]:
    """The projections' weights of a decoder layer; of the middle one without an index."""
    count = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    prefix = f"model.layers.{count // 2 if index is None else index}"
    with safe_open(model / "model.safetensors", "pt") as file:
        return {
            name: torch.cat([file.get_tensor(f"{prefix}.{part}.weight") for part in parts])
            for name, parts in PROJECTIONS.items()
        }


def kinds(packed: Mapping[str, TwelveBit], folder: Path) -> dict[str, Make]:
    """What makes each kind of product of a named projection; vLLM's own is the first."""
    dense = {b.name: NativeDense(b) for b in backends()}
    found: dict[str, Make] = {"vLLM": lambda _, weight: backbone(weight)}
    for isa in [isa for isa in ISAS if isa in dense]:
        function = compiled(isa, folder)

        def bf16(_: str, weight: torch.Tensor, isa: str = isa) -> Product:
            held = HugePages().hold(weight)
            return lambda x: dense[isa](x, held, None)

        found[f"bf16, {isa}"] = bf16
        found[f"12 bits, {isa}"] = lambda n, _, f=function: twelve_bit(f, packed[n])
    return found


def check(label: str, products: Mapping[str, Product], exact: Mapping[str, Exact]) -> None:
    """Every number of rows against float64.

    Raises:
        RuntimeError: it is off by more than bf16's rounding and that of sums in float32.
    """
    for name, of_name in exact.items():
        for rows in range(1, MOST_ROWS + 1):
            found = products[name](of_name.x[:rows]).double()
            allowed = of_name.y[:rows].abs() / 256 + of_name.magnitude[:rows] * 1e-5
            if not ((found - of_name.y[:rows]).abs() <= allowed).all():
                raise RuntimeError(f"{label}, {name}, {rows} rows: not the product")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a bf16 checkpoint")
    parser.add_argument("--layer", type=int, help="default: the middle one")
    parser.add_argument("--rows", type=int, nargs="+", default=list(range(1, MOST_ROWS + 1)))
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--copies", type=int, default=4, help="of the layer, each product's own")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    weights = layer(args.model, args.layer)
    packed = {name: encode(weight) for name, weight in weights.items()}
    for name, weight in weights.items():
        if not torch.equal(decode(packed[name]).view(torch.int16), weight.view(torch.int16)):
            raise RuntimeError(f"{name}: not the weight")
    escapes = {name: len(packed[name].values) / weight.numel() for name, weight in weights.items()}
    shares = ", ".join(f"{name} {share:.1e}" for name, share in escapes.items())
    print(f"{args.model.name}, {machine()}, {args.threads} threads; escapes: {shares}", flush=True)
    exact = {name: Exact.of(weight) for name, weight in weights.items()}
    layers: dict[str, Iterator[Layer]] = {}
    with set_current_vllm_config(VllmConfig()), tempfile.TemporaryDirectory() as folder:
        init_distributed_environment(1, 0, f"file://{folder}/init", 0, "gloo")
        initialize_model_parallel(1)
        for kind, make in kinds(packed, Path(folder)).items():
            copies = [{n: make(n, w) for n, w in weights.items()} for _ in range(args.copies)]
            check(kind, copies[0], exact)
            layers[kind] = cycle(copies)
    inputs = {name: of_name.x for name, of_name in exact.items()}
    nbytes = {
        kind: sum(packed[n].blocks.nbytes if "12" in kind else w.nbytes for n, w in weights.items())
        for kind in layers
    }
    print(f"\n| rows | {' | '.join(layers)} |")
    print("|---" * (len(layers) + 1) + "|")
    results = []
    for rows in args.rows:
        turns = [partial(run, copies, inputs, rows) for copies in layers.values()]
        seconds = dict(zip(layers, medians(turns, args.repeats, warm=1), strict=True))
        cells = []
        for kind, taken in seconds.items():
            speed, ratio = nbytes[kind] / taken / 1e9, seconds["vLLM"] / taken
            cells.append(f"{taken * 1e3:.2f} ms, {speed:.1f} GB/s, {ratio:.2f}x")
            found = {"rows": rows, "kind": kind, "seconds": taken, "gb_per_s": speed}
            results.append({**found, "ratio": ratio})
        print(f"| {rows} | {' | '.join(cells)} |", flush=True)
    if args.json:
        report = {"machine": machine(), "threads": args.threads, "escapes": escapes}
        args.json.write_text(json.dumps({**report, "results": results}, indent=1))


def run(copies: Iterator[Layer], inputs: Mapping[str, torch.Tensor], rows: int) -> None:
    for name, product in next(copies).items():
        product(inputs[name][:rows])


if __name__ == "__main__":
    main()
