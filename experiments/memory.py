"""Measure the peak memory of stock vLLM, fully 4-bit vLLM, River, and River with few bf16 layers.

One server runs at a time. A thread samples the memory of its processes while it loads and while it
answers. Memory is the proportional set size (PSS): each of n processes counts 1/n of a shared page.
"File" is the part that maps files (libraries, the checkpoint during its load); the system can drop
it.

    python experiments/memory.py MODEL [--resident 4] [--only "stock vLLM" …] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from servers import NAME, Server, machine

STOCK, FULL, RIVER, OFFLOADED = "stock vLLM", "fully 4-bit vLLM", "River", "River, offloaded"


@dataclass
class Usage:
    """PSS in MiB: its peak, and the part of that peak that maps files."""

    peak: float = 0.0
    file: float = 0.0


@dataclass
class Result:
    """One server's usage while it loads, while it answers requests, and after them."""

    load: Usage
    serve: Usage
    steady: Usage
    backbone: float | None
    """MiB of the resident bf16 layers; None without a river."""

    @property
    def worst(self) -> Usage:
        """The higher peak of loading and serving."""
        return max(self.load, self.serve, key=lambda usage: usage.peak)


class Sampler:
    """Samples the memory of a process group in a thread, five times a second, until it ends."""

    def __init__(self, group: int) -> None:
        self._group = group
        self._usage = Usage()
        threading.Thread(target=self._run, daemon=True).start()

    def phase(self) -> Usage:
        """End the current phase; returns its usage."""
        done, self._usage = self._usage, Usage()
        return done

    def _run(self) -> None:
        while (found := group_memory(self._group))[0]:
            usage = self._usage
            if found[0] > usage.peak:
                usage.peak, usage.file = found
            time.sleep(0.2)


def group_memory(group: int) -> tuple[float, float]:
    """PSS of a process group's members and its file part, MiB."""
    total = file = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) != group:
                continue
            text = (folder / "smaps_rollup").read_text()
        except OSError:
            continue  # the process has just ended
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        total += int(fields.get("Pss", "0 kB").split()[0])
        file += int(fields.get("Pss_File", "0 kB").split()[0])
    return total / 1024, file / 1024


def measure(label: str, model: str, options: tuple[str, ...], logs: Path) -> Result:
    """Start a server, send it requests, stop it."""
    river = label in (RIVER, OFFLOADED)
    with Server(label.replace(" ", "-"), model, logs, options, river) as server:
        sampler = Sampler(server.process.pid)
        server.wait()
        load = sampler.phase()
        with ThreadPoolExecutor(4) as users:
            list(users.map(lambda index: ask(server.url, index), range(8)))
        serve = sampler.phase()
        time.sleep(3)
        steady = sampler.phase()
        if not river:
            return Result(load, serve, steady, None)
        state = httpx.get(f"{server.url}/river", timeout=60).json()
        return Result(load, serve, steady, state["backbone_bytes"] / 2**20)


def ask(url: str, index: int) -> None:
    """Send one request of about 600 tokens."""
    prompt = f"{index} " + "The quick brown fox jumps over the lazy dog. " * 60
    body = {"model": NAME, "prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    httpx.post(f"{url}/v1/completions", json=body, timeout=300).raise_for_status()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a bf16 checkpoint")
    parser.add_argument("--resident", default="4", help="layers of the offloaded backbone")
    parser.add_argument("--only", nargs="+", help="labels of the servers to run")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    offload = ("--river-resident-layers", args.resident)
    servers = {STOCK: (), FULL: (), RIVER: (), OFFLOADED: offload}
    results: dict[str, Result] = {}
    print(f"{Path(args.model).name}, {time.strftime('%Y-%m-%d')}, {machine()}")
    print("| server | peak | of it files | steady | of it files | resident layers | peak, of … |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for label, options in servers.items():
            if args.only and label not in args.only:
                continue
            model = args.model
            if label == FULL:
                model = str(folder / "w4a16")
                script = Path(__file__).with_name("make_quantized.py")
                made = [sys.executable, script, args.model, model, "--form", "w4a16"]
                subprocess.run(made, check=True, stdout=sys.stderr)
            results[label] = found = measure(label, model, options, folder)
            numbers = (found.worst.peak, found.worst.file, found.steady.peak, found.steady.file)
            cells = [f"{number:.0f}" for number in numbers]
            cells.append("" if found.backbone is None else f"{found.backbone:.0f}")
            print(f"| {' | '.join([label, *cells, compared(label, results)])} |", flush=True)
    if args.json:
        report = {"machine": machine(), "results": {n: asdict(r) for n, r in results.items()}}
        args.json.write_text(json.dumps(report, indent=1))


def compared(label: str, results: dict[str, Result]) -> str:
    """The peak relative to the peak of stock or fully 4-bit vLLM, as a text."""
    found = results[label]
    if label == OFFLOADED and FULL in results and found.backbone is not None:
        share = (found.worst.peak - found.backbone) / results[FULL].worst.peak
        return f"{share:.2f} of {FULL}, without the resident layers"
    if label == RIVER and STOCK in results:
        return f"{found.worst.peak / results[STOCK].worst.peak:.2f} of {STOCK}"
    return ""


if __name__ == "__main__":
    main()
