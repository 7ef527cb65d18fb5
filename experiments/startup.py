#!/usr/bin/env python3
"""Seconds from the command to the first token: stock vLLM and River, first and second start.

    python experiments/startup.py models/smollm2-135m --json startup.json

Both servers are given the same engine settings, and stock the patch that lets it read back what it
has compiled. A first start finds empty cache folders, a second one those of the first. The servers
take turns; medians. It takes minutes per turn and wants a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from servers import NAME, Server, machine

LIMITS = {"first": 1.5, "second": 1.15}
"""River's time over stock's, at most."""
KINDS = ("stock", "river")
PROMPT = "The capital of France is"
POLL = 0.2


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of the checkpoint, or a hub id")
    parser.add_argument("--repeats", type=int, default=3, help="turns (default %(default)s)")
    parser.add_argument("--river", nargs="*", default=[], help="more options of 'river-vllm serve'")
    parser.add_argument("--json", type=Path, default=None, help="file for the figures")
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error(f"--repeats {args.repeats}: must be at least 1")
    seconds: dict[str, dict[str, list[float]]] = {
        start: {kind: [] for kind in KINDS} for start in LIMITS
    }
    for turn in range(args.repeats):
        with tempfile.TemporaryDirectory(prefix="river-startup-") as folder:
            for start in LIMITS:
                # Who starts first finds less of the checkpoint in the page cache.
                for kind in KINDS if turn % 2 == 0 else reversed(KINDS):
                    taken = measure(kind, start, args.model, Path(folder), args.river)
                    seconds[start][kind].append(taken)
                    print(f"turn {turn + 1}, {start} start, {kind}: {taken:.1f} s", flush=True)
    report = summary(args.model, seconds)
    print(table(report))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(kind: str, start: str, model: str, folder: Path, river: list[str]) -> float:
    """Seconds from the command to the first token of a short prompt."""
    own = folder / kind
    environment = {
        "VLLM_CACHE_ROOT": str(own / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(own / "inductor"),
        "RIVER_CACHE_DIR": str(own / "river"),
        "XDG_CACHE_HOME": str(own / "cache"),
        # A model of the hub is not fetched again.
        "HF_HOME": os.environ.get("HF_HOME", str(Path.home() / ".cache" / "huggingface")),
    }
    options: list[str] = []
    if kind == "river":
        # Not beside the checkpoint, where an earlier start may have left them.
        options = ["--river-cache-dir", str(own / "weights"), *river]
    else:
        # River is installed, and would register itself.
        environment["VLLM_PLUGINS"] = ""
        here = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, here))
    begun = time.monotonic()
    with Server(
        f"{kind}-{start}",
        model,
        folder,
        options,
        river=kind == "river",
        module="stock_server",
        environment=environment,
    ) as server:
        server.wait(POLL)
        body = {"model": NAME, "prompt": PROMPT, "max_tokens": 1, "temperature": 0}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=300)
        taken = time.monotonic() - begun
        if answer.status_code != 200:
            raise RuntimeError(f"{kind} answers {answer.status_code}: {answer.text}")
    return taken


def summary(model: str, seconds: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Medians, the ratio of them, and the limit that it is held to."""
    starts = {}
    for start, kinds in seconds.items():
        medians = {kind: statistics.median(taken) for kind, taken in kinds.items()}
        ratio = medians["river"] / medians["stock"]
        starts[start] = {
            "seconds": kinds,
            "median": medians,
            "ratio": ratio,
            "limit": LIMITS[start],
            "holds": ratio <= LIMITS[start],
        }
    capability = os.environ.get("ATEN_CPU_CAPABILITY")
    return {"model": model, "machine": machine(), "capability": capability, "starts": starts}


def table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['model']} on {report['machine']}",
        "",
        "| start | stock, s | River, s | ratio | limit |",
        "|---|---|---|---|---|",
    ]
    for start, found in report["starts"].items():
        cells = [
            f"{found['median'][kind]:.1f} ({min(found['seconds'][kind]):.1f} to "
            f"{max(found['seconds'][kind]):.1f})"
            for kind in KINDS
        ]
        verdict = "holds" if found["holds"] else "missed"
        cells += [f"{found['ratio']:.2f}", f"≤ {found['limit']}: {verdict}"]
        lines.append(f"| {start} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
