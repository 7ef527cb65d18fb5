"""Compare every shipped setting with stock vLLM, interleaved; prints a Markdown table.

Stock vLLM runs all the time with one other server beside it: River, vLLM's own speculative methods,
fully 4-bit vLLM, or a peer such as llama.cpp. ``river-vllm bench compare`` sends requests to both
in turn. Each line has median ratios with intervals; settings that draft also have the acceptance
rate and tokens per step. ``benchmark_report.py`` makes tables and plots of the ``--json`` file.

    python experiments/benchmark.py MODEL --users 1 4 --data gsm8k.jsonl:question [--json FILE]
    python experiments/benchmark.py MODEL --draft-model SMALL --only "vLLM, draft model"
    python experiments/benchmark.py MODEL --peer llama.cpp "ENV/bin/python -m llama_cpp.server \\
        --model FILE.gguf" --only llama.cpp
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import servers
from servers import Server, machine

TOKENS = "vllm:generation_tokens_total"
DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
COUNTS = (TOKENS, DRAFTED, ACCEPTED)
HEAD = (
    "| users | prompts | setting | TPOT, stock / setting | TTFT, stock / setting | TPOT, ms "
    "| drafts kept | tokens a step |",
    "|---|---|---|---|---|---|---|---|",
)


@dataclass(frozen=True)
class Setting:
    """One row of the table: a server, and the river field of its requests."""

    label: str
    server: str
    river: dict[str, Any] | None = None
    load: bool = False
    """Whether the setting is measured with several users too."""

    @property
    def exact(self) -> bool:
        """Whether the setting's answers are the backbone's."""
        approximate = self.server in ("calibrated", "w4a16")
        return not approximate and self.river in (None, {"enabled": False})


ONE, TWO, FOUR = ({"threshold": -1.0, "min_layers": layers} for layers in (1, 2, 4))
SETTINGS = (
    Setting("River", "river", load=True),
    Setting("River, quantised", "quantised", load=True),
    Setting("River, off", "river", {"enabled": False}, load=True),
    Setting("vLLM, n-gram", "n-gram"),
    Setting("vLLM, suffix", "suffix"),
    Setting("vLLM, draft model", "draft model"),
    Setting("River, calibrated", "calibrated"),
    Setting("River, tau 0.9", "river", {"threshold": 0.9}),
    Setting("River, 1 layer", "river", ONE),
    Setting("River, 4 layers", "river", FOUR),
    Setting("River, 2 layers, river LM head", "head", TWO),
    Setting("River, 4 layers, river LM head", "head", FOUR, load=True),
    Setting("River, 4 layers, river LM head, int8", "fast", FOUR, load=True),
    Setting("fully 4-bit vLLM", "w4a16", load=True),
)
RIVER = {
    "river": (),
    "quantised": (),
    "calibrated": ("--river-config", "auto"),
    "head": ("--river-lm-head", "river"),
    "fast": ("--river-lm-head", "river", "--river-activations", "int8"),
}
"""Options of River's servers; the quantised ones get ``--river-weights`` too."""
FOUR_TOKENS = {"num_speculative_tokens": 4}
LOOKUP = {"prompt_lookup_max": 4, "prompt_lookup_min": 2}
SPECULATIVE: dict[str, dict[str, Any]] = {
    "n-gram": {"method": "ngram", **FOUR_TOKENS, **LOOKUP},
    "suffix": {"method": "suffix", "num_speculative_tokens": 16},
    "draft model": {"method": "draft_model", **FOUR_TOKENS},
}
"""``--speculative-config`` of vLLM's own methods."""


def main() -> None:
    args = arguments()
    settings = known(args)
    labels = [setting.label for setting in settings]
    if missing := sorted(set(args.only or ()) - set(labels)):
        sys.exit(
            f"--only {missing}: there are {labels} (--draft-model, --river-weights, --peer add)"
        )
    if args.only:
        settings = [setting for setting in settings if setting.label in args.only]
    print(f"{Path(args.model).name}, {time.strftime('%Y-%m-%d')}, {machine()}")
    print(*HEAD, sep="\n", flush=True)
    report: dict[str, Any] = {
        "model": Path(args.model).name,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "command": shlex.join(sys.argv),
        "memory_mib": {},
        "results": [],
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stock = stack.enter_context(Server("stock", args.model, folder))
        stock.wait()
        for result in measure(args, settings, stock, folder, report["memory_mib"]):
            report["results"].append(result)
            print(row(result), flush=True)
            write(args.json, report)  # for an interrupted run
        report["memory_mib"]["stock"] = stock.memory_mib()
    write(args.json, report)
    memory = ", ".join(f"{kind} {mib:.0f}" for kind, mib in report["memory_mib"].items())
    print(f"\nPeak memory, MiB: {memory}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a bf16 checkpoint")
    parser.add_argument("--draft-model", help="folder of a smaller one with the same vocabulary")
    parser.add_argument("--river-weights", help="folder that 'river-vllm quantize' has made")
    parser.add_argument(
        "--data", nargs="+", metavar="FILE:FIELD", default=[""], help="prompts; else random words"
    )
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=10, help="rounds with one user")
    parser.add_argument("--load-rounds", type=int, default=6, help="rounds with more users")
    parser.add_argument(
        "--first-rounds", type=int, default=20, help="rounds of one token, for TTFT with one user"
    )
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt-words", type=int, default=48, help="length of random prompts")
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="settings by their label")
    parser.add_argument(
        "--peer",
        nargs=2,
        action="append",
        default=[],
        metavar=("LABEL", "COMMAND"),
        help="another OpenAI-compatible server; its command also gets --host and --port",
    )
    parser.add_argument("--extra-body", default="{}", metavar="JSON", help="of every request")
    parser.add_argument(
        "--all-loads", action="store_true", help="every setting with many users too"
    )
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def known(args: argparse.Namespace) -> list[Setting]:
    """The settings whose models and packages are present."""
    # vLLM's suffix method needs arctic_inference.
    there: dict[str, Any] = {
        "suffix": find_spec("arctic_inference"),
        "draft model": args.draft_model,
        "quantised": args.river_weights,
    }
    peers = [Setting(label, label) for label, _ in args.peer]
    return [setting for setting in (*SETTINGS, *peers) if there.get(setting.server, True)]


def measure(
    args: argparse.Namespace,
    settings: list[Setting],
    stock: Server,
    folder: Path,
    memory: dict[str, float],
) -> Iterator[dict[str, Any]]:
    """Yield the result of each comparison; one server at a time runs beside stock."""
    peers = dict(args.peer)
    for kind in dict.fromkeys(s.server for s in settings):
        model, options = args.model, RIVER.get(kind, ())
        if kind == "quantised":
            options = (*options, "--river-weights", args.river_weights)
        if kind == "w4a16":
            model = str(folder / "w4a16")
            script = Path(__file__).with_name("make_quantized.py")
            subprocess.run(
                [sys.executable, script, args.model, model, "--form", "w4a16"], check=True
            )
        elif kind in SPECULATIVE:
            draft = {"model": args.draft_model} if kind == "draft model" else {}
            config = {**SPECULATIVE[kind], **draft}
            options = ("--speculative-config", json.dumps(config))
        other = shlex.split(peers.get(kind, ""))
        with Server(kind, model, folder, options, kind in RIVER, other) as server:
            server.wait()
            for users in args.users:
                for setting in settings:
                    if setting.server == kind and (users == 1 or setting.load or args.all_loads):
                        for data in args.data:
                            yield compare(stock.url, setting, server, data, users, args)
            memory[kind] = server.memory_mib()


def compare(
    stock: str,
    setting: Setting,
    server: Server,
    data: str,
    users: int,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """The JSON report of ``bench compare``; one user's time to first token has its own rounds.

    A whole answer gives one sample of it, so these rounds ask for answers of one token.
    """
    before = server.metrics()
    file, _, field = data.partition(":")
    prompts = ["--prompts", file, "--prompt-field", field or "prompt"]
    common = prompts if file else ["--prompt-words", str(args.prompt_words)]
    common += ["--concurrency", str(users), "--block", str(users)]
    common += ["--extra-body", args.extra_body]
    if setting.river is not None:
        common += ["--river-b", json.dumps(setting.river)]
    rounds = args.rounds if users == 1 else args.load_rounds
    try:
        found = servers.compare(
            *(stock, server.url, "--rounds", str(rounds)),
            *("--output-tokens", str(args.tokens), *common),
        )
        after = server.metrics()
        if users == 1 and args.first_rounds:
            first = servers.compare(
                *(stock, server.url, "--rounds", str(args.first_rounds)),
                *("--output-tokens", "1", *common),
            )
            found["ratios"] = [
                *(ratio for ratio in found["ratios"] if ratio["metric"] != "ttft"),
                *(ratio for ratio in first["ratios"] if ratio["metric"] == "ttft"),
            ]
    except RuntimeError as error:
        sys.exit(f"{setting.label}: {error}")
    name = Path(file).stem or "random words"
    counts = {metric: after.get(metric, 0.0) - before.get(metric, 0.0) for metric in COUNTS}
    said = {"users": users, "prompts": name, "setting": setting.label}
    return said | {"report": found, "counts": counts}


def drafts(result: dict[str, Any]) -> tuple[str, str]:
    """Acceptance rate and tokens per step; empty for settings that do not draft."""
    counts = result["counts"]
    if not counts[DRAFTED]:
        return "", ""
    kept = f"{100 * counts[ACCEPTED] / counts[DRAFTED]:.0f} %"
    # Every step of a request adds one token of the backbone to the accepted ones.
    return kept, f"{counts[TOKENS] / (counts[TOKENS] - counts[ACCEPTED]):.1f}"


def row(result: dict[str, Any]) -> str:
    """The table's line for ``result``."""
    ratios = {ratio["metric"]: ratio for ratio in result["report"]["ratios"]}

    def cell(metric: str) -> str:
        entry = ratios[metric]
        if entry["median"] is None:
            return "-"
        if entry["low"] is None:  # one round has no interval
            return f"{entry['median']:.2f}x"
        return f"{entry['median']:.2f}x ({entry['low']:.2f}–{entry['high']:.2f})"

    a, b = ratios["tpot"]["a"], ratios["tpot"]["b"]
    times = "-" if a is None or b is None else f"{a:.1f} → {b:.1f}"
    cells = [str(result["users"]), result["prompts"], result["setting"]]
    cells += [cell("tpot"), cell("ttft"), times, *drafts(result)]
    return f"| {' | '.join(cells)} |"


def write(path: Path | None, report: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers end too
    main()
