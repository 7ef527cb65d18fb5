"""Plots as SVG text that stands inside a page. The only module that needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from server.bench.measure.statistics import percentile
from server.bench.measure.timing import timing_of
from server.bench.record import Outcome
from server.bench.run import LevelResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#1f6feb", "#d1570a", "#1a7f37", "#8250df", "#bf3989", "#57606a", "#9a6700", "#0a7ea4")
OUTCOME_COLORS = {
    Outcome.COMPLETED: "#1f6feb",
    Outcome.FAILED: "#cf222e",
    Outcome.INCOMPLETE: "#d1570a",
    Outcome.CANCELLED: "#8c959f",
    Outcome.INTERRUPTED: "#57606a",
}
_GRID = [step / 2 for step in range(201)]
"""Percents at which a distribution is drawn, so that a page stays small."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches; text stays text in the SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "axes.grid": True}
    )
    matplotlib.rcParams.update(
        {"grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False}
    )
    return Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure) -> str:
    """The ``<svg>`` element alone."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def latency_plot(levels: Sequence[LevelResult]) -> str:
    """Cumulative distributions of the four times, a line per level."""
    figure = new_figure(9.5, 5.4)
    for axes, name in zip(figure.subplots(2, 2).flat, ("TTFT", "ITL", "TPOT", "E2E"), strict=True):
        for level, color in _colored(levels):
            samples = sorted(_samples(level, name))
            if samples:
                values = [percentile(samples, percent) for percent in _GRID]
                axes.plot(values, _GRID, color=color, label=str(level.level))
        axes.set(title=name, xlabel="ms", ylabel="% of samples at or below", ylim=(0, 101))
    _legend(figure.axes[0], len(levels))
    return svg(figure)


def timeline_plot(levels: Sequence[LevelResult]) -> str:
    """Every request: when it was sent, how long it took, how it ended."""
    figure = new_figure(9.5, 3.4)
    axes = figure.subplots()
    records = [record for level in levels for record in level.records]
    origin = min((record.sent for record in records), default=0.0)
    for outcome, color in OUTCOME_COLORS.items():
        own = [record for record in records if record.outcome is outcome]
        if own:
            sent = [record.sent - origin for record in own]
            took = [record.ended - record.sent for record in own]
            marker = "o" if outcome is Outcome.COMPLETED else "x"
            label = f"{outcome.value} ({len(own)})"
            axes.scatter(sent, took, s=14, c=color, marker=marker, label=label)
    axes.set(xlabel="sent, s from the start", ylabel="until it ended, s")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=5)
    return svg(figure)


def sweep_plot(levels: Sequence[LevelResult]) -> str:
    """Throughput, TTFT and TPOT over the levels."""
    figure = new_figure(9.5, 3.0)
    names = [f"{(level.level.rate or level.level.concurrency):g}" for level in levels]
    unit = "rate, requests/s" if levels[0].level.rate is not None else "concurrency"
    output, ttft, tpot = figure.subplots(1, 3)
    rates = [level.report.throughput for level in levels]
    per_s = [rate.output_tokens_per_s if rate else None for rate in rates]
    _line(output, names, per_s, COLORS[0], "")
    output.set(title="Output tokens/s")
    for axes, field in ((ttft, "ttft_ms"), (tpot, "tpot_ms")):
        values = [getattr(level.report, field) for level in levels]
        for mark, color in (("p50", COLORS[0]), ("p99", COLORS[1])):
            _line(axes, names, [getattr(value, mark, None) for value in values], color, mark)
        axes.set(title=f"{field[:4].upper()}, ms")
        _legend(axes, 2)
    for axes in (output, ttft, tpot):
        axes.set(xlabel=unit)
        axes.set_ylim(bottom=0)
    return svg(figure)


def exit_plot(levels: Sequence[LevelResult]) -> str:
    """Share of decode tokens by exit layer, for levels whose answers report it."""
    figure = new_figure(9.5, 2.8)
    axes = figure.subplots()
    shown = [(level, color) for level, color in _colored(levels) if level.report.river]
    width = 0.8 / max(1, len(shown))
    for place, (level, color) in enumerate(shown):
        layers = level.report.river.exit_layers if level.report.river else {}
        total = sum(layers.values()) or 1
        at = [layer + (place - (len(shown) - 1) / 2) * width for layer in layers]
        shares = [100 * count / total for count in layers.values()]
        axes.bar(at, shares, width, color=color, label=str(level.level))
    axes.set(title="Exit layer", xlabel="backbone layers run", ylabel="% of decode tokens")
    _legend(axes, len(shown))
    return svg(figure)


def _samples(level: LevelResult, name: str) -> list[float]:
    timings = [timing for record in level.records if (timing := timing_of(record)) is not None]
    if name == "ITL":
        return [gap * 1e3 for timing in timings for gap in timing.itl]
    values = [getattr(timing, name.lower()) for timing in timings]
    return [value * 1e3 for value in values if value is not None]


def _line(
    axes: Axes, names: list[str], values: Sequence[float | None], color: str, label: str
) -> None:
    """A level without a figure leaves a gap."""
    numbers = [float("nan") if value is None else value for value in values]
    axes.plot(names, numbers, "o-", color=color, label=label)


def _colored(levels: Sequence[LevelResult]) -> list[tuple[LevelResult, str]]:
    return [(level, COLORS[place % len(COLORS)]) for place, level in enumerate(levels)]


def _legend(axes: Axes, lines: int) -> None:
    if lines > 1 and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
