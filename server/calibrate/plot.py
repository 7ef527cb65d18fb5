"""Cost against depth, for people. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

from river_vllm.calibration.run import Outcome
from river_vllm.errors import RiverError
from server.calibrate.document import Circumstances

_COLORS = {"fixed layer": "#57606a", "one τ": "#1f6feb", "per layer": "#1a7f37"}


def check_matplotlib() -> None:
    """
    Raises:
        RiverError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise RiverError(
            "--plot needs matplotlib: install river-vllm with the extra 'bench'"
        ) from None


def write_plot(path: Path, outcome: Outcome, made: Circumstances) -> None:
    """Each kind's frontier as predicted from the pilot, and what was measured."""
    from server.bench.output.plots import new_figure

    figure = new_figure(8.0, 4.8)
    axes = figure.subplots()
    for kind, found in outcome.frontier.items():
        depths = [p.mean_exit_layer for p in found]
        axes.plot(depths, [p.kl for p in found], color=_COLORS[kind], label=f"{kind} (predicted)")
    layers = [item.layer for item in outcome.forced]
    axes.plot(layers, [item.kl for item in outcome.forced], "o", color="#57606a", label="measured")
    for passed, color in ((True, "#1a7f37"), (False, "#cf222e")):
        tests = [test for test in outcome.tests if test.passed is passed]
        if tests:
            axes.plot(
                [test.mean_exit_layer for test in tests],
                [test.kl for test in tests],
                "D",
                color=color,
                label="tested, passed" if passed else "tested, not shown",
            )
    axes.set_xlabel(f"mean exit layer of {outcome.target.num_layers}")
    axes.set_ylabel("KL(backbone ‖ river), nats")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{made.model.name}: target {outcome.target.describe()}")
    top = axes.secondary_xaxis("top")
    ticks = [tick for tick in axes.get_xticks() if 0 <= tick <= outcome.target.num_layers]
    top.set_xticks(ticks, [f"{made.weights.speedup(tick):.2f}×" for tick in ticks])
    top.set_xlabel("speed-up by weight bytes")
    axes.legend()
    figure.savefig(path, dpi=150)
