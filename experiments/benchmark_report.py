"""Make tables and plots of ``docs/benchmarks.md`` from JSON files of ``experiments/benchmark.py``.

Files of the same model and machine go into one table and one plot.

    python experiments/benchmark_report.py results/*.json --figures docs/images
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
from benchmark import HEAD, SETTINGS, row

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("--figures", type=Path, help="folder for the plots of each model")
    parser.add_argument(
        "--quality",
        nargs="+",
        default=[],
        metavar="SETTING=FILE",
        help="report of 'river-vllm eval --json' for a setting, with stock as A; adds a plot",
    )
    args = parser.parse_args()
    quality = dict(entry.split("=", 1) for entry in args.quality)
    for report in merged(json.loads(path.read_text()) for path in args.reports):
        print(table(report), "\n")
        if args.figures:
            args.figures.mkdir(parents=True, exist_ok=True)
            speeds(report, args.figures / f"benchmark-{report['model']}.svg")
            if quality:
                files = {label: Path(file) for label, file in quality.items()}
                trade(report, files, args.figures / f"quality-{report['model']}.svg")


def merged(reports: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One report per model and machine, with the commands of its parts on one line each."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for report in reports:
        whole = found.setdefault((report["model"], report["machine"]), report)
        if whole is not report:
            whole["results"] += report["results"]
            whole["memory_mib"] |= report["memory_mib"]
            whole["command"] += "\n" + report["command"]
    return list(found.values())


def ratio(result: dict[str, Any], metric: str) -> dict[str, float]:
    """The comparison's entry of one metric: median, low, high, and each side's median."""
    ratios: dict[str, dict[str, float]] = {
        entry["metric"]: entry for entry in result["report"]["ratios"]
    }
    return ratios[metric]


def table(report: dict[str, Any]) -> str:
    lines = [
        f"## {report['model']}",
        "",
        f"{report['date']}, {report['machine']}.",
        "",
        "```sh",
        report["command"],
        "```",
        "",
        *HEAD,
        *(row(result) for result in sorted(report["results"], key=lambda r: r["users"])),
    ]
    memory = ", ".join(f"{kind} {mib:.0f}" for kind, mib in report["memory_mib"].items())
    return "\n".join([*lines, "", f"Peak resident memory, MiB: {memory}."])


def speeds(report: dict[str, Any], path: Path) -> None:
    """Plot the speed-up by number of users, one panel per set of prompts."""
    kinds = list(dict.fromkeys(r["prompts"] for r in report["results"]))
    figure, panels = plt.subplots(
        1, len(kinds), figsize=(5 * len(kinds), 5), sharey=True, squeeze=False
    )
    for axes, prompts in zip(panels[0], kinds, strict=True):
        results = [r for r in report["results"] if r["prompts"] == prompts]
        for label in dict.fromkeys(r["setting"] for r in results):
            line = sorted((r for r in results if r["setting"] == label), key=lambda r: r["users"])
            entries = [ratio(r, "tpot") for r in line]
            medians = [e["median"] for e in entries]
            below = [e["median"] - (e["low"] or e["median"]) for e in entries]
            above = [(e["high"] or e["median"]) - e["median"] for e in entries]
            users = [r["users"] for r in line]
            axes.errorbar(users, medians, [below, above], marker="o", capsize=3, label=label)
        axes.axhline(1.0, color="grey", linewidth=1)
        axes.set_xscale("log", base=2)
        ticks = sorted({r["users"] for r in results})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlabel(f"users, {prompts}")
        axes.set_ylim(bottom=0)
    panels[0][0].set_ylabel("time per output token, stock / setting")
    panels[0][-1].legend(fontsize=7, loc="upper right")
    save(figure, report, path)


def trade(report: dict[str, Any], quality: dict[str, Path], path: Path) -> None:
    """Plot one user's speed, on the report's first prompts, against the share of right answers.

    Exact settings have the backbone's answers; approximate settings without a file are left out.
    Bars are the intervals of the paired difference.

    Args:
        quality: files of ``river-vllm eval --json`` by setting; stock is their side A.
    """
    evaluations = {label: json.loads(file.read_text()) for label, file in quality.items()}
    figures = {label: found["figures"][0] for label, found in evaluations.items()}
    stock = next(iter(figures.values()))
    prompts = report["results"][0]["prompts"]
    speed = {"stock vLLM": 1.0}
    known = {setting.label for setting in SETTINGS if setting.exact} | quality.keys()
    for result in report["results"]:
        if result["users"] == 1 and result["prompts"] == prompts and result["setting"] in known:
            speed.setdefault(result["setting"], ratio(result, "tpot")["median"])
    if missing := sorted(quality.keys() - speed.keys()):
        raise SystemExit(f"--quality: no speed of {missing}; there are {sorted(speed)}")
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for label, faster in speed.items():
        found = figures.get(label, {"difference": 0.0, "low": 0.0, "high": 0.0})
        right = 100 * (stock["a"] + found["difference"])
        below, above = (100 * abs(found[end] - found["difference"]) for end in ("low", "high"))
        axes.errorbar([faster], [right], [[below], [above]], marker="o", capsize=3)
        axes.annotate(label, (faster, right), (4, 4), textcoords="offset points", fontsize=7)
    axes.axhline(100 * stock["a"], color="grey", linewidth=1, zorder=0)
    axes.set_xlabel("speed: time per output token, stock / setting")
    axes.set_ylabel(f"right answers, %: {stock['task']}, {stock['problems']} problems")
    axes.margins(x=0.3)
    save(figure, report, path)


def save(figure: Any, report: dict[str, Any], path: Path) -> None:
    figure.suptitle(f"{report['model']}, {report['date']}, {report['machine']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
