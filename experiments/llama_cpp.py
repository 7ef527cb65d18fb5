"""River, stock vLLM and llama.cpp in one interleaved run: one user, every core.

llama.cpp (``llama-cpp-python[server]`` in an environment of its own, compiled for this machine)
serves the GGUF file that the checkpoint was dequantised from. Each round asks every server for the
same greedy continuation of a prompt that none of them has seen, one after the other and by turns
first. One table has the time per token, one the time to the first token of a long prompt.

    python tools/get_model.py qwen-coder-1.5b models/qwen-coder-1.5b --keep-gguf models/1.5b.gguf
    CMAKE_ARGS="-DGGML_NATIVE=ON" ENV/bin/pip install --no-binary llama-cpp-python \\
        "llama-cpp-python[server]==0.3.36"
    python experiments/llama_cpp.py models/qwen-coder-1.5b models/1.5b.gguf --python ENV/bin/python
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import httpx
from servers import NAME, Server, machine
from transformers import AutoTokenizer

from server.bench.client import make_client
from server.bench.figures import interval
from server.bench.request import Answer, ask
from server.bench.words import WORDS

PEER = "llama.cpp"
STOCK = "stock vLLM"
RIVER = ("--river-lm-head", "river", "--river-activations", "int8")
WAKE_TOKENS = 4
"""A server was idle while the others answered: its first answer would be late."""
SECONDS = 600.0


@dataclass(frozen=True)
class Side:
    """A server and what its requests say besides the prompt."""

    label: str
    url: str
    body: dict[str, Any]
    depth: int | None = None


@dataclass
class Figure:
    """What one side took in each round, in milliseconds."""

    milliseconds: list[float] = field(default_factory=list)
    off_depth: int = 0
    """Tokens that did not leave where the request said."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a bf16 checkpoint")
    parser.add_argument("gguf", help="the file that it was made from")
    parser.add_argument("--python", required=True, help="of the environment with llama-cpp-python")
    parser.add_argument("--llama-options", default="", help="more of its server's options")
    parser.add_argument("--river-options", default="", help="more of River's server's options")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 4], help="min_layers")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--first-rounds", type=int, default=12, help="for the first token")
    parser.add_argument("--first-prompt-tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    build = llama_build(args.python)
    report: dict[str, Any] = {
        "model": Path(args.model).name,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "command": shlex.join(sys.argv),
        "llama_cpp": build,
    }
    print(f"{report['model']}, {report['date']}, {report['machine']}; {PEER}: {build}", flush=True)
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides, report["river"] = start(args, logs, stack)
        asyncio.run(measure(args, sides, report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


def llama_build(python: str) -> str:
    """Version, and the instruction sets that llama.cpp was compiled for."""
    program = "import llama_cpp as l; print(l.__version__, l.llama_print_system_info().decode())"
    done = subprocess.run([python, "-P", "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def start(args: argparse.Namespace, logs: Path, stack: ExitStack) -> tuple[list[Side], Any]:
    """Start the servers one after the other; the sides, and River's ``GET /river``."""
    threads = str(len(os.sched_getaffinity(0)))
    llama = [
        *(args.python, "-P", "-m", "llama_cpp.server", "--model", args.gguf),
        *("--model_alias", NAME, "--n_ctx", "2048", "--logits_all", "false"),
        *("--n_threads", threads, "--n_threads_batch", threads),
        *shlex.split(args.llama_options),
    ]
    peer = stack.enter_context(Server("llama", args.model, logs, other=llama))
    peer.wait()
    stock = stack.enter_context(Server("stock", args.model, logs))
    stock.wait()
    options = (*RIVER, *shlex.split(args.river_options))
    river = stack.enter_context(Server("river", args.model, logs, options, river=True))
    river.wait()
    vllm = {"ignore_eos": True}
    sides = [
        # Its own default would make it look for repetitions, and answer otherwise.
        Side(PEER, peer.url, {"repeat_penalty": 1.0}),
        Side(STOCK, stock.url, vllm),
    ]
    for layers in args.layers:
        field = {"threshold": -1.0, "min_layers": layers}
        label = f"River, {layers} layer{'s' if layers > 1 else ''}"
        sides.append(Side(label, river.url, {**vllm, "river": field}, layers))
    return sides, httpx.get(f"{river.url}/river", timeout=30).json()


async def measure(args: argparse.Namespace, sides: list[Side], report: dict[str, Any]) -> None:
    """Both tables, printed and put into ``report``."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    chance = random.Random(args.seed)
    async with make_client() as client:
        run = Run(client, tokenizer, chance)
        await run.rounds(sides, 1, args.prompt_tokens, args.tokens)  # what is compiled at first use
        found = await run.rounds(sides, args.rounds, args.prompt_tokens, args.tokens)
        title = f"ms per token ({args.tokens} tokens after {args.prompt_tokens})"
        report["tpot"] = table(title, found)
        # A prompt runs on the backbone: any depth will do.
        found = await run.rounds(sides[:3], args.first_rounds, args.first_prompt_tokens, 1)
        title = f"ms to the first token of {args.first_prompt_tokens}"
        report["ttft"] = table(title, found)


class Run:
    """Rounds over the same connections."""

    def __init__(self, client: httpx.AsyncClient, tokenizer: Any, chance: random.Random) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self._chance = chance

    async def rounds(
        self, sides: list[Side], count: int, prompt_tokens: int, tokens: int
    ) -> dict[str, Figure]:
        """Time per token, or with one token the time to it, of ``count`` rounds.

        A round in which a side ends its answer early is repeated with another prompt.

        Raises:
            RuntimeError: a request failed, or too many answers ended early.
        """
        figures = {side.label: Figure() for side in sides}
        whole = 0
        for number in range(3 * count):
            prompt = self._prompt(prompt_tokens)
            first = number % len(sides)
            answers = {}
            for side in sides[first:] + sides[:first]:
                await self._ask(side, self._prompt(8), WAKE_TOKENS)
                answers[side.label] = await self._ask(side, prompt, tokens)
            if any(answer.finish_reason != "length" for answer in answers.values()):
                continue
            for side in sides:
                note(figures[side.label], answers[side.label], side, tokens)
            whole += 1
            if whole == count:
                return figures
        raise RuntimeError(f"only {whole} of {count} rounds had whole answers from every server")

    async def _ask(self, side: Side, prompt: str, tokens: int) -> Answer:
        body = {
            "model": NAME,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0.0,
            "stream": True,
            **side.body,
        }
        answer = await ask(self._client, f"{side.url}/v1/completions", {}, body, SECONDS)
        if answer.error is not None:
            raise RuntimeError(f"{side.label}: {answer.error}")
        return answer

    def _prompt(self, tokens: int) -> str:
        """Random words that are ``tokens`` tokens; no cache holds a beginning of them."""
        words = self._chance.choices(WORDS, k=tokens)
        while (excess := len(self._tokenizer(" ".join(words)).input_ids) - tokens) != 0:
            if excess > 0:
                words.pop()
            else:
                words.append(self._chance.choice(WORDS))
        return " ".join(words)


def note(figure: Figure, answer: Answer, side: Side, tokens: int) -> None:
    """Add one answer to the figures of its side."""
    assert answer.first is not None and answer.finished is not None  # of a completed answer
    seconds = answer.first if tokens == 1 else (answer.finished - answer.first) / (tokens - 1)
    figure.milliseconds.append(1000 * seconds)
    if side.depth is not None and answer.river is not None:
        layers = answer.river.exit_layers
        figure.off_depth += sum(n for layer, n in layers.items() if layer != side.depth)


def table(title: str, figures: dict[str, Figure]) -> dict[str, Any]:
    """Print medians, ranges and ratios; the same for the report."""
    print(f"\n| | {title}: median (range) | of {PEER}'s | of {STOCK}'s |\n|---|---|---|---|")
    found: dict[str, Any] = {}
    for label, figure in figures.items():
        values = figure.milliseconds
        row: dict[str, Any] = {**asdict(figure), "median": statistics.median(values)}
        cells = [f"{row['median']:.1f} ({min(values):.1f}–{max(values):.1f})"]
        for other in (PEER, STOCK):
            pairs = zip(values, figures[other].milliseconds, strict=True)
            ratios = [mine / theirs for mine, theirs in pairs]
            low, high = interval(ratios, 0.95, 0) if len(ratios) > 1 else ratios * 2
            row[f"of {other}"] = {"median": statistics.median(ratios), "low": low, "high": high}
            same = other == label
            cells.append("" if same else f"{statistics.median(ratios):.2f} ({low:.2f}–{high:.2f})")
        found[label] = row
        print(f"| {label} | {' | '.join(cells)} |", flush=True)
    for label, figure in figures.items():
        if figure.off_depth:
            print(f"\n{label}: {figure.off_depth} tokens left elsewhere; these are not its figures")
    return found


if __name__ == "__main__":
    main()
