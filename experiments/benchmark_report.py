"""Tables and plots of ``docs/benchmarks.md`` from the JSON files of ``experiments/benchmark.py``.

Files of the same model go into one table and one plot.

python experiments/benchmark_report.py results/*.json --figures docs/figures
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ORDER = "| users | setting | TPOT, stock / setting | TTFT | whole request | ms a token |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("--figures", type=Path, help="folder for one plot per model")
    args = parser.parse_args()
    for report in merged(json.loads(path.read_text()) for path in args.reports):
        print(table(report), "\n")
        if args.figures:
            args.figures.mkdir(parents=True, exist_ok=True)
            plot(report, args.figures / f"benchmark-{report['model']}.svg")


def merged(reports: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One report per model and machine; its command is all of theirs, one on each line."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for report in reports:
        whole = found.setdefault((report["model"], report["machine"]), report)
        if whole is not report:
            whole["results"] += report["results"]
            whole["memory_mib"] |= report["memory_mib"]
            whole["command"] += "\n" + report["command"]
    return list(found.values())


def ratio(result: dict[str, Any], metric: str) -> dict[str, float]:
    """The comparison's entry of one metric: median, low, high, and each side's median.

    A server that does not count its tokens has whole requests in the place of TPOT.
    """
    ratios = {entry["metric"]: entry for entry in result["report"]["ratios"]}
    found: dict[str, float] = ratios[metric]
    if metric == "tpot" and found["median"] is None:
        found = ratios["e2e"]
    return found


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
        ORDER,
        "|---" * 6 + "|",
    ]
    for result in sorted(report["results"], key=lambda r: r["users"]):
        tpot, ttft, e2e = (ratio(result, name) for name in ("tpot", "ttft", "e2e"))
        cells = [f"{r['median']:.2f}x ({r['low']:.2f}–{r['high']:.2f})" for r in (tpot, ttft, e2e)]
        times = f"{tpot['a']:.1f} → {tpot['b']:.1f}"
        lines.append(f"| {result['users']} | {result['setting']} | {' | '.join(cells)} | {times} |")
    memory = ", ".join(f"{kind} {mib:.0f}" for kind, mib in report["memory_mib"].items())
    return "\n".join([*lines, "", f"Peak resident memory, MiB: {memory}."])


def plot(report: dict[str, Any], path: Path) -> None:
    """Speed-up over users; a setting measured for one user only is a point."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for label in dict.fromkeys(r["setting"] for r in report["results"]):
        results = sorted(
            (r for r in report["results"] if r["setting"] == label), key=lambda r: r["users"]
        )
        entries = [ratio(r, "tpot") for r in results]
        medians = [e["median"] for e in entries]
        below = [e["median"] - e["low"] for e in entries]
        above = [e["high"] - e["median"] for e in entries]
        users = [r["users"] for r in results]
        axes.errorbar(users, medians, [below, above], marker="o", capsize=3, label=label)
    axes.axhline(1.0, color="grey", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
    axes.set_xlabel("concurrent users")
    axes.set_ylabel("time per output token, stock / setting")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{report['model']}, {report['date']}, {report['machine']}", fontsize=9)
    axes.legend(fontsize=7, loc="upper right")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
