"""Verified mode beside stock vLLM and vLLM's own speculative decoding, interleaved.

One server after the other runs beside stock vLLM; ``river-vllm bench compare`` alternates requests
between the two. All answers are the backbone's own, so only speed differs. Prints a Markdown table
of median ratios with their confidence intervals, acceptance and tokens per step (from vLLM's own
``spec_decode`` metrics, the same for every method); ``--json`` keeps every figure.

    python experiments/verified.py MODEL --draft-model SMALL --data gsm8k.jsonl:question
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import servers
from servers import Server, machine

TOKENS = "vllm:generation_tokens_total"
DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"


@dataclass(frozen=True)
class Setting:
    """One server that is compared with stock vLLM."""

    label: str
    options: tuple[str, ...]
    river: bool = True


def settings(args: argparse.Namespace) -> Iterator[Setting]:
    ngram = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}
    ngram["prompt_lookup_min"] = 2
    yield Setting("n-gram, 4", ("--speculative-config", json.dumps(ngram)), river=False)
    if args.draft_model:
        draft = {"method": "draft_model", "model": args.draft_model, "num_speculative_tokens": 4}
        name = f"draft {Path(args.draft_model).name}, 4"
        yield Setting(name, ("--speculative-config", json.dumps(draft)), river=False)
    for tokens in (4, 6, 8):
        yield Setting(f"River, up to {tokens}", ("--river-verify", str(tokens)))


def compare(a: str, b: str, data: str, users: int, args: argparse.Namespace) -> Any:
    """The JSON report of ``bench compare``."""
    file, _, field = data.partition(":")
    return servers.compare(
        *(a, b, "--prompts", file, "--prompt-field", field or "prompt"),
        *("--rounds", str(args.rounds), "--concurrency", str(users), "--block", str(users)),
        *("--output-tokens", str(args.tokens)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a bf16 checkpoint")
    parser.add_argument("--draft-model", help="folder of a smaller one with the same vocabulary")
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE:FIELD", help="prompts")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="of the settings to run")
    parser.add_argument("--json", type=Path, help="every figure")
    args = parser.parse_args()
    print(f"{Path(args.model).name}, {time.strftime('%Y-%m-%d')}, {machine()}")
    print("| users | data | method | TPOT, stock / method | TPOT, ms | accepted | tokens a step |")
    print("|---|---|---|---|---|---|---|")
    results = []
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stock = stack.enter_context(Server("stock", args.model, logs))
        stock.wait()
        for setting in settings(args):
            if not args.only or setting.label in args.only:
                results += measure(setting, stock, logs, args)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1))


def measure(
    setting: Setting, stock: Server, logs: Path, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Every load of one setting, each a line of the table."""
    results = []
    label = setting.label.replace(" ", "-").replace(",", "")
    with Server(label, args.model, logs, setting.options, setting.river) as server:
        server.wait()
        for users in args.users:
            for data in args.data:
                before = server.metrics()
                report = compare(stock.url, server.url, data, users, args)
                after = server.metrics()
                counts = {
                    name: after.get(name, 0.0) - before.get(name, 0.0)
                    for name in (TOKENS, DRAFTED, ACCEPTED)
                }
                stem = Path(data.partition(":")[0]).stem
                print(line(setting, stem, users, report, counts), flush=True)
                results.append(
                    {"setting": setting.label, "data": data, "users": users}
                    | {"report": report, "counts": counts}
                )
    return results


def line(setting: Setting, data: str, users: int, report: Any, counts: dict[str, float]) -> str:
    ratio = next(entry for entry in report["ratios"] if entry["metric"] == "tpot")
    speed = f"{ratio['median']:.2f}x ({ratio['low']:.2f}–{ratio['high']:.2f})"
    drafted, accepted = counts[DRAFTED], counts[ACCEPTED]
    kept = f"{100 * accepted / drafted:.1f} % of {drafted:.0f}" if drafted else "nothing drafted"
    # Every step of a request brings one token of the backbone's beside the accepted ones.
    steps = counts[TOKENS] - accepted
    cells = (
        *(users, data, setting.label, speed, f"{ratio['a']:.1f} → {ratio['b']:.1f}", kept),
        f"{counts[TOKENS] / steps:.2f}",
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


if __name__ == "__main__":
    main()
