"""Prints the outcome of a calibration."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from river_vllm.calibrate.certify import upper_bound
from river_vllm.calibrate.passes import Policy
from river_vllm.calibrate.run import Outcome
from server.calibrate.document import Circumstances


def describe(policy: Policy) -> str:
    """A policy in a few words."""
    if policy.threshold <= -1.0:
        return f"after layer {policy.min_layers}"
    return f"τ {policy.threshold:g}, from layer {policy.min_layers}"


def target(outcome: Outcome) -> str:
    """The target in words."""
    return f"agreement with the backbone of at least {1 - outcome.limit:.2%}"


def print_outcome(console: Console, outcome: Outcome, made: Circumstances) -> None:
    """Print the agreement of forced exits on the pilot, and the tests."""
    if outcome.forced:
        console.print(_forced_table(outcome))
    console.print(_tests_table(outcome, made))
    if made.prompts.too_long:
        console.print(
            f"{made.prompts.too_long} prompts left out: longer than {made.longest} tokens "
            "(--max-model-len less --tokens)"
        )
    if outcome.left_out:
        console.print(
            f"{outcome.left_out} prompts left out: their answers end with the first token"
        )


def _forced_table(outcome: Outcome) -> Table:
    table = Table(
        "every token leaves after layer", title=f"pilot, {len(outcome.pilot)} prompts", min_width=60
    )
    table.add_column("agreement", justify="right")
    for layer, agreement in outcome.forced.items():
        table.add_row(str(layer), f"{agreement:.2%}")
    return table


def _tests_table(outcome: Outcome, made: Circumstances) -> Table:
    table = Table("setting", title=target(outcome), min_width=60)
    for name in ("prompts", "agreement", "mean exit layer", "by bytes", "bound", "p", ""):
        table.add_column(name, justify="right")
    for test in outcome.tests:
        bound = 1 - upper_bound(test.losses, outcome.delta)
        table.add_row(
            describe(test.policy),
            str(len(test.losses)),
            f"{test.agreement:.2%}",
            f"{test.mean_exit_layer:.2f}",
            f"{made.weights.speedup(test.mean_exit_layer):.2f}×",
            f"{bound:.2%}",
            f"{test.p_value:.2g}",
            "passed" if test.passed else "not shown",
        )
    return table
