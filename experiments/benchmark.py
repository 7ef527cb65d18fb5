"""The benchmark of the whole claim: stock vLLM, fully 4-bit vLLM and River, interleaved.

Starts the servers of one model side by side and compares each setting with stock vLLM through
``river-vllm bench compare``, which alternates requests between the two. Prints a Markdown table of
median ratios with their confidence intervals; ``--json`` keeps every figure.

    python experiments/benchmark.py MODEL --concurrency 1 4 8 [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

NAME = "model"
START_SECONDS = 600.0
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


class Server:
    """A server process on a free port, with the same engine settings as the others."""

    def __init__(self, kind: str, model: str, logs: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        common = [
            *("--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", NAME),
            *("--max-model-len", "2048", "--max-num-seqs", "32"),
            *("--kv-cache-memory-bytes", str(1 << 29)),
        ]
        if kind in OPTIONS:
            command = ["-m", "server.cli.main", "serve", model, *common, *OPTIONS[kind]]
        else:
            command = ["-m", "vllm.entrypoints.openai.api_server", "--model", model, *common]
        environment = {**os.environ, "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
        self.log = logs / f"{kind}.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                sys.exit(f"{self.log}: the server ended at start")
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(1)
        sys.exit(f"{self.log}: the server was not ready in time")

    def memory_mib(self) -> float:
        """Resident memory of the server's processes, peak of each, summed."""
        total = 0
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                text = status.read_text()
                if os.getpgid(int(status.parent.name)) != self.process.pid:
                    continue
            except (OSError, ProcessLookupError):
                continue
            lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
            total += int(lines.get("VmHWM", "0 kB").split()[0])
        return total / 1024


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
            servers[kind] = stack.enter_context(Server(kind, model, folder))
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


def machine() -> str:
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{len(os.sched_getaffinity(0))} cores {names[0] if names else platform.machine()}"


if __name__ == "__main__":
    main()
