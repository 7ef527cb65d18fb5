"""The benchmark of the whole claim: stock vLLM, fully 4-bit vLLM and River, interleaved.

Starts stock vLLM and, beside it, one server after the other, and compares each setting with stock
through ``river-vllm bench compare``, which alternates requests between the two. Prints a Markdown
table of median ratios with their confidence intervals; ``--json`` keeps every figure, and
``experiments/benchmark_report.py`` makes the tables and plots of ``docs/benchmarks.md`` from it.

    python experiments/benchmark.py MODEL --concurrency 1 4 8 [--json FILE]
    python experiments/benchmark.py MODEL --other "llama.cpp Q4_K_M=http://127.0.0.1:8080"
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import servers
from servers import Server, machine

STOCK = "stock vLLM"


@dataclass(frozen=True)
class Setting:
    """One row of the table: a server, and what its requests say."""

    label: str
    server: str
    river: dict[str, Any] | None = None
    load: bool = False
    """Whether it is measured with more than one user too."""


SETTINGS = (
    Setting("River, 4 layers, river LM head", "head", {"threshold": -1.0, "min_layers": 4}, True),
    Setting("River, 2 layers, river LM head", "head", {"threshold": -1.0, "min_layers": 2}),
    Setting(
        "River, 4 layers, river LM head, int8", "fast", {"threshold": -1.0, "min_layers": 4}, True
    ),
    Setting("River, 2 layers, river LM head, int8", "fast", {"threshold": -1.0, "min_layers": 2}),
    Setting("River, off", "river", {"enabled": False}, load=True),
    Setting("River, tau 0.9", "river", {"threshold": 0.9}),
    Setting("River, 1 layer", "river", {"threshold": -1.0, "min_layers": 1}),
    Setting("River, 4 layers", "river", {"threshold": -1.0, "min_layers": 4}, load=True),
    Setting("fully 4-bit vLLM", "w4a16", load=True),
)
OPTIONS = {
    "river": (),
    "head": ("--river-lm-head", "river"),
    "fast": ("--river-lm-head", "river", "--river-activations", "int8"),
}
"""River servers, by what their command line adds."""


def compare(a: str, setting: Setting, b: str, args: argparse.Namespace, users: int) -> Any:
    """The JSON report of ``bench compare``; with one user the first token's figures are its own.

    A whole answer gives one sample of TTFT, so answers of one token are asked for besides.
    """
    common = ["--prompt-words", str(args.prompt_words)]
    if setting.river is not None:
        common += ["--river-b", json.dumps(setting.river)]
    rounds = args.rounds if users == 1 else args.load_rounds
    shape = ("--concurrency", str(users), "--block", str(users))
    try:
        found = servers.compare(
            a, b, "--rounds", str(rounds), *shape, "--output-tokens", str(args.tokens), *common
        )
        if users == 1 and args.first_rounds:
            first = servers.compare(
                a, b, "--rounds", str(args.first_rounds), *shape, "--output-tokens", "1", *common
            )
            found["ratios"] = [
                *(ratio for ratio in found["ratios"] if ratio["metric"] != "ttft"),
                *(ratio for ratio in first["ratios"] if ratio["metric"] == "ttft"),
            ]
        return found
    except RuntimeError as error:
        sys.exit(f"{setting.label}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a bf16 checkpoint")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=9, help="with one user")
    parser.add_argument("--load-rounds", type=int, default=5, help="with more")
    parser.add_argument(
        "--first-rounds", type=int, default=20, help="of one token, for TTFT with one user"
    )
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt-words", type=int, default=48)
    parser.add_argument("--only", nargs="+", help="labels of the settings to run")
    parser.add_argument(
        "--all-loads", action="store_true", help="every setting with many users too"
    )
    parser.add_argument("--other", metavar="LABEL=URL", help="a running server, for one user")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    settings = [s for s in SETTINGS if not args.only or s.label in args.only]
    print(f"{Path(args.model).name}, {time.strftime('%Y-%m-%d')}, {machine()}")
    print("| users | setting | TPOT, stock / setting | TTFT, stock / setting | TPOT, ms |")
    print("|---|---|---|---|---|", flush=True)
    report: dict[str, Any] = {
        "model": Path(args.model).name,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "command": " ".join(sys.argv),
        "memory_mib": {},
        "results": [],
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stock = stack.enter_context(Server("stock", args.model, folder))
        stock.wait()
        for users, label, found in measure(args, settings, stock, folder, report["memory_mib"]):
            report["results"].append({"users": users, "setting": label, "report": found})
            print(f"| {users} | {label} | {row(found)} |", flush=True)
            write(args.json, report)  # what is there when somebody stops it
        report["memory_mib"]["stock"] = stock.memory_mib()
    write(args.json, report)
    memory = ", ".join(f"{kind} {mib:.0f}" for kind, mib in report["memory_mib"].items())
    print(f"\nPeak memory, MiB: {memory}")


def write(path: Path | None, report: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=1))


def measure(
    args: argparse.Namespace,
    settings: list[Setting],
    stock: Server,
    folder: Path,
    memory: dict[str, float],
) -> Iterator[tuple[int, str, Any]]:
    """Users, label and report of each comparison; one server beside stock at a time."""
    for kind in dict.fromkeys(s.server for s in settings):
        model = args.model
        if kind == "w4a16":
            model = str(folder / "w4a16")
            script = Path(__file__).with_name("make_w4a16.py")
            subprocess.run([sys.executable, script, args.model, model], check=True)
        options = OPTIONS.get(kind)
        with Server(kind, model, folder, options or (), river=options is not None) as server:
            server.wait()
            for users in args.concurrency:
                for setting in settings:
                    if setting.server == kind and (users == 1 or setting.load or args.all_loads):
                        yield (
                            users,
                            setting.label,
                            compare(stock.url, setting, server.url, args, users),
                        )
            memory[kind] = server.memory_mib()
    if args.other:
        label, _, url = args.other.partition("=")
        yield 1, label, compare(stock.url, Setting(label, "other"), url, args, 1)


def row(found: Any) -> str:
    ratios = {ratio["metric"]: ratio for ratio in found["ratios"]}

    def cell(metric: str) -> str:
        entry = ratios[metric]
        if entry["median"] is None:
            return "-"
        return f"{entry['median']:.2f}x ({entry['low']:.2f}–{entry['high']:.2f})"

    # A server that does not count its tokens has whole requests only.
    token = "e2e" if ratios["tpot"]["median"] is None else "tpot"
    a, b = ratios[token]["a"], ratios[token]["b"]
    times = "-" if a is None or b is None else f"{a:.1f} → {b:.1f}"
    return f"{cell(token)} | {cell('ttft')} | {times}"


if __name__ == "__main__":
    main()
