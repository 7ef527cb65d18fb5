"""The benchmark of the whole claim: stock vLLM, fully 4-bit vLLM and River, interleaved.

Starts the servers of one model side by side and compares each setting with stock vLLM through
``river-vllm bench compare``, which alternates requests between the two. Prints a Markdown table of
median ratios with their confidence intervals; ``--json`` keeps every figure.

    python experiments/benchmark.py MODEL --concurrency 1 4 8 [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers import Server, machine

STOCK = "stock vLLM"


@dataclass(frozen=True)
class Setting:
    """One row of the table: a server, and what its requests say."""

    label: str
    server: str
    river: dict[str, Any] | None = None


SETTINGS = (
    Setting("fully 4-bit vLLM", "w4a16"),
    Setting("River, off", "river", {"enabled": False}),
    Setting("River, tau 0.9", "river", {"threshold": 0.9}),
    Setting("River, 4 layers", "river", {"threshold": -1.0, "min_layers": 4}),
    Setting("River, 2 layers", "river", {"threshold": -1.0, "min_layers": 2}),
    Setting("River, 4 layers, river LM head", "head", {"threshold": -1.0, "min_layers": 4}),
    Setting("River, 4 layers, river LM head, int8", "fast", {"threshold": -1.0, "min_layers": 4}),
    Setting("River, 2 layers, river LM head, int8", "fast", {"threshold": -1.0, "min_layers": 2}),
)
OPTIONS = {
    "river": (),
    "head": ("--river-lm-head", "river"),
    "fast": ("--river-lm-head", "river", "--river-activations", "int8"),
}
"""River servers, by what their command line adds."""


def compare(a: str, setting: Setting, b: str, args: argparse.Namespace, users: int) -> Any:
    """The JSON report of ``bench compare``."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [
            *(sys.executable, "-m", "server.cli.main", "bench", "compare", a, b),
            *("--api", "completions", "--ignore-eos", "--cache-salt", "--no-progress"),
            *("--rounds", str(args.rounds), "--concurrency", str(users), "--block", str(users)),
            *("--prompt-words", str(args.prompt_words), "--output-tokens", str(args.tokens)),
            *("--warmup", "2", "--json", file.name),
        ]
        if setting.river is not None:
            command += ["--river-b", json.dumps(setting.river)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"bench compare failed for {setting.label}:\n{done.stdout}{done.stderr}")
        return json.loads(Path(file.name).read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a bf16 checkpoint")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt-words", type=int, default=48)
    parser.add_argument("--only", nargs="+", help="labels of the settings to run")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    settings = [s for s in SETTINGS if not args.only or s.label in args.only]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {}
        for kind in ("stock", *sorted({s.server for s in settings})):
            model = args.model
            if kind == "w4a16":
                model = str(folder / "w4a16")
                script = Path(__file__).with_name("make_w4a16.py")
                subprocess.run([sys.executable, script, args.model, model], check=True)
            options = OPTIONS.get(kind)
            server = Server(kind, model, folder, options or (), river=options is not None)
            servers[kind] = stack.enter_context(server)
            servers[kind].wait()
        report(args, settings, servers)


def report(args: argparse.Namespace, settings: list[Setting], servers: dict[str, Server]) -> None:
    print(f"{Path(args.model).name}, {time.strftime('%Y-%m-%d')}, {machine()}")
    print("| users | setting | TPOT, stock / setting | TTFT, stock / setting | TPOT, ms |")
    print("|---|---|---|---|---|")
    results = []
    for users in args.concurrency:
        for setting in settings:
            found = compare(servers["stock"].url, setting, servers[setting.server].url, args, users)
            results.append({"users": users, "setting": setting.label, "report": found})
            print(f"| {users} | {setting.label} | {row(found)} |", flush=True)
    memory = {kind: server.memory_mib() for kind, server in servers.items()}
    print("\nPeak memory, MiB: " + ", ".join(f"{k} {v:.0f}" for k, v in memory.items()))
    if args.json:
        args.json.write_text(
            json.dumps({"machine": machine(), "memory_mib": memory, "results": results}, indent=1)
        )


def row(found: Any) -> str:
    ratios = {ratio["metric"]: ratio for ratio in found["ratios"]}

    def cell(metric: str) -> str:
        entry = ratios[metric]
        return f"{entry['median']:.2f}x ({entry['low']:.2f}–{entry['high']:.2f})"

    tpot = ratios["tpot"]
    return f"{cell('tpot')} | {cell('ttft')} | {tpot['a']:.1f} → {tpot['b']:.1f}"


if __name__ == "__main__":
    main()
