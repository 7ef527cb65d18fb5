"""Measure the seconds from the command to the first token: stock vLLM and River, by turns.

Both servers get the same engine settings, and stock vLLM the patch to read back its compiled
forward. A first start has empty cache folders, a second start those of the first. A turn takes
minutes; run nothing else on the machine.

    python experiments/startup.py models/smollm2-135m --json startup.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from servers import NAME, Server, machine

LIMITS = {"first": 1.5, "second": 1.15}
"""Highest ratio of River's time to stock's."""
KINDS = ("stock", "river")
POLL = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of the checkpoint, or a hub id")
    parser.add_argument("--repeats", type=int, default=3, help="turns (default %(default)s)")
    parser.add_argument("--river", nargs="*", default=[], help="more options of 'river-vllm serve'")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    seconds: dict[str, dict[str, list[float]]] = {start: {k: [] for k in KINDS} for start in LIMITS}
    for turn in range(args.repeats):
        with tempfile.TemporaryDirectory(prefix="river-startup-") as folder:
            for start in LIMITS:
                # The kind that starts first finds less of the checkpoint in the page cache.
                for kind in KINDS if turn % 2 == 0 else reversed(KINDS):
                    taken = measure(kind, start, args.model, Path(folder), args.river)
                    seconds[start][kind].append(taken)
                    print(f"turn {turn + 1}, {start} start, {kind}: {taken:.1f} s", flush=True)
    report: dict[str, Any] = {"model": args.model, "machine": machine(), "starts": {}}
    report["capability"] = os.environ.get("ATEN_CPU_CAPABILITY")
    print(f"{args.model} on {machine()}\n\n| start | stock, s | River, s | ratio | limit |")
    print("|---|---|---|---|---|")
    for start, kinds in seconds.items():
        stock, river = (statistics.median(taken) for taken in kinds.values())
        holds = river / stock <= LIMITS[start]
        report["starts"][start] = {"seconds": kinds, "ratio": river / stock, "holds": holds}
        cells = [
            f"{statistics.median(t):.1f} ({min(t):.1f} to {max(t):.1f})" for t in kinds.values()
        ]
        verdict = f"≤ {LIMITS[start]}: {'holds' if holds else 'missed'}"
        print(f"| {' | '.join([start, *cells, f'{river / stock:.2f}', verdict])} |")
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1))


def measure(kind: str, start: str, model: str, folder: Path, river: list[str]) -> float:
    """Seconds from the command to the first token of a short prompt.

    Raises:
        RuntimeError: the server does not start.
        httpx.HTTPStatusError: the server refuses the request.
    """
    own = folder / kind
    environment = {
        "VLLM_CACHE_ROOT": str(own / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(own / "inductor"),
        "RIVER_CACHE_DIR": str(own / "river"),
        "XDG_CACHE_HOME": str(own / "cache"),
        # The user's folder: a hub model is not fetched again.
        "HF_HOME": os.environ.get("HF_HOME", str(Path.home() / ".cache" / "huggingface")),
    }
    options: list[str] = []
    if kind == "river":
        # An earlier start may have left weights beside the checkpoint.
        options = ["--river-cache-dir", str(own / "weights"), *river]
    else:
        environment["VLLM_PLUGINS"] = ""  # else River registers itself
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
        body = {
            "model": NAME,
            "prompt": "The capital of France is",
            "max_tokens": 1,
            "temperature": 0,
        }
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=300).raise_for_status()
        return time.monotonic() - begun


if __name__ == "__main__":
    main()
