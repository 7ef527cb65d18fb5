"""Peak memory of stock vLLM, fully 4-bit vLLM, River, and River with an offloaded backbone.

Starts each server by itself, samples the memory of its process tree while it loads and while it
answers, and prints a Markdown table. Memory is the proportional set size (PSS): what each process
holds, with shared pages divided among those that share them. "File" is the part that maps files
(libraries, and the checkpoint while it is read), which the system can drop; the rest cannot.

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
from typing import Any

import httpx
from servers import NAME, Server, machine

MIB = 1 << 20
STOCK, FULL, RIVER, OFFLOADED = "stock vLLM", "fully 4-bit vLLM", "River", "River, offloaded"


@dataclass
class Usage:
    """PSS in MiB: its peak, and the part of that peak that maps files."""

    peak: float = 0.0
    file: float = 0.0

    def take(self, total: float, file: float) -> None:
        if total > self.peak:
            self.peak, self.file = total, file


class Sampler:
    """Watches the processes of a group from a thread, five times a second."""

    def __init__(self, group: int) -> None:
        self._group = group
        self._stop = threading.Event()
        self.usage = Usage()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def phase(self) -> Usage:
        """The usage so far; a new phase begins."""
        done, self.usage = self.usage, Usage()
        return done

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            usage = self.usage
            usage.take(*group_memory(self._group))


def group_memory(group: int) -> tuple[float, float]:
    """PSS of a process group's members and its file part, MiB."""
    total = file = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) != group:
                continue
            text = (folder / "smaps_rollup").read_text()
        except OSError:
            continue  # it has just ended
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        total += int(fields.get("Pss", "0 kB").split()[0])
        file += int(fields.get("Pss_File", "0 kB").split()[0])
    return total / 1024, file / 1024


@dataclass
class Result:
    """One server. ``load`` ends when it is healthy, ``serve`` when its requests are answered;
    ``steady`` is after that. MiB."""

    label: str
    load: Usage
    serve: Usage
    steady: Usage
    backbone: float | None
    """Of River: bf16 weights of the resident layers."""

    @property
    def peak(self) -> float:
        return max(self.load.peak, self.serve.peak)


def measure(label: str, model: str, options: tuple[str, ...], logs: Path) -> Result:
    """Start a server, ask it something, stop it."""
    river = label in (RIVER, OFFLOADED)
    with Server(label.replace(" ", "-"), model, logs, options, river) as server:
        sampler = Sampler(server.process.pid)
        try:
            server.wait()
            load = sampler.phase()
            with ThreadPoolExecutor(4) as users:
                list(users.map(lambda index: ask(server.url, index), range(8)))
            serve = sampler.phase()
            time.sleep(3)
            steady = sampler.phase()
        finally:
            sampler.stop()
        backbone = None
        if river:
            found = httpx.get(f"{server.url}/river", timeout=60).json()
            backbone = found["backbone_bytes"] / MIB
        return Result(label, load, serve, steady, backbone)


def ask(url: str, index: int) -> None:
    body: dict[str, Any] = {
        "model": NAME,
        "prompt": f"{index} " + "The quick brown fox jumps over the lazy dog. " * 60,
        "max_tokens": 24,
        "temperature": 0,
        "ignore_eos": True,
    }
    httpx.post(f"{url}/v1/completions", json=body, timeout=300).raise_for_status()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a bf16 checkpoint")
    parser.add_argument("--resident", default="4", help="layers of the offloaded backbone")
    parser.add_argument("--only", nargs="+", help="labels of the servers to run")
    parser.add_argument("--w4a16", help="4-bit copy that experiments/make_w4a16.py made before")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    offload = ("--river-resident-layers", args.resident)
    servers = {STOCK: (), FULL: (), RIVER: (), OFFLOADED: offload}
    results: dict[str, Result] = {}
    print(f"{Path(args.model).name}, {time.strftime('%Y-%m-%d')}, {machine()}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for label, options in servers.items():
            if args.only and label not in args.only:
                continue
            model = args.model
            if label == FULL:
                model = args.w4a16 or str(folder / "w4a16")
                if args.w4a16 is None:
                    script = Path(__file__).with_name("make_w4a16.py")
                    subprocess.run([sys.executable, script, args.model, model], check=True)
            results[label] = measure(label, model, options, folder)
            print(results[label], flush=True)
    report(results)
    if args.json:
        found = {label: {**asdict(r), "peak": r.peak} for label, r in results.items()}
        args.json.write_text(json.dumps({"machine": machine(), "results": found}, indent=1))


def report(results: dict[str, Result]) -> None:
    print("| server | peak | of it files | steady | of it files | resident layers | peak, of … |")
    print("|---|---|---|---|---|---|---|")
    for label, result in results.items():
        worst = max(result.load, result.serve, key=lambda usage: usage.peak)
        backbone = "" if result.backbone is None else f"{result.backbone:.0f}"
        print(
            f"| {label} | {worst.peak:.0f} | {worst.file:.0f} | {result.steady.peak:.0f} | "
            f"{result.steady.file:.0f} | {backbone} | {compared(result, results)} |"
        )


def compared(result: Result, results: dict[str, Result]) -> str:
    """The peak as a share of the server that it is held against."""
    if result.label == OFFLOADED and FULL in results and result.backbone is not None:
        share = (result.peak - result.backbone) / results[FULL].peak
        return f"{share:.2f} of {FULL}, without the resident layers"
    if result.label == RIVER and STOCK in results:
        return f"{result.peak / results[STOCK].peak:.2f} of {STOCK}"
    return ""


if __name__ == "__main__":
    main()
