"""What the libraries that vLLM's own CPU image preloads are worth, to stock vLLM and to River.

The image preloads TCMalloc (Debian's ``libtcmalloc-minimal4``) and Intel's OpenMP runtime (PyPI's
``intel-openmp``). One user; for each kind of server the two take turns (``river-vllm bench
compare``). Above 1 preloading is faster.

    python experiments/preload.py models/qwen-coder-0.5b --preload LIBTCMALLOC.so:LIBIOMP5.so
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import servers
from servers import Server, machine

EXIT = json.dumps({"threshold": -1.0, "min_layers": 4})
KINDS: dict[str, tuple[str, ...]] = {
    "stock vLLM": (),
    "River, 4 layers": ("--river-lm-head", "river", "--river-activations", "int8"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a bf16 checkpoint")
    parser.add_argument("--preload", required=True, help="LD_PRELOAD of the second server")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=48)
    args = parser.parse_args()
    print(f"{Path(args.model).name}, {machine()}, LD_PRELOAD={args.preload}\n")
    print("| | ms per token, without → with | without / with | TTFT, ms | without / with |")
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as logs:
        for kind in args.kinds:
            print(f"| {kind} | {row(kind, args, Path(logs))} |", flush=True)


def row(kind: str, args: argparse.Namespace, logs: Path) -> str:
    """TPOT of whole answers, TTFT of answers of one token."""
    river = kind != "stock vLLM"
    field = ["--river-a", EXIT, "--river-b", EXIT] if river else []
    with Server("plain", args.model, logs, KINDS[kind], river) as plain:
        plain.wait()
        preload = {"LD_PRELOAD": args.preload}
        with Server("preload", args.model, logs, KINDS[kind], river, environment=preload) as other:
            other.wait()
            cells = []
            for metric, tokens in (("tpot", args.tokens), ("ttft", 1)):
                options = ("--rounds", str(args.rounds), "--output-tokens", str(tokens), *field)
                found = servers.compare(plain.url, other.url, *options)
                ratio = next(entry for entry in found["ratios"] if entry["metric"] == metric)
                cells.append(f"{ratio['a']:.1f} → {ratio['b']:.1f}")
                cells.append(f"{ratio['median']:.2f}x ({ratio['low']:.2f}–{ratio['high']:.2f})")
    return " | ".join(cells)


if __name__ == "__main__":
    main()
