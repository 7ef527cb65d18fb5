"""The outcome of a calibration: tables, river config and JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from river_vllm import __version__
from river_vllm.calibrate.certify import Trial, upper_bound
from river_vllm.calibrate.passes import Policy
from river_vllm.calibrate.run import Outcome, Prediction
from river_vllm.config import RiverConfig, calibrated_settings, recorded_settings
from river_vllm.guarantee import (
    AchievedRecord,
    Calibration,
    DialRecord,
    ModelRecord,
    PromptsRecord,
    TargetRecord,
)
from server.cli.prompts import Prompts


@dataclass(frozen=True, slots=True)
class Circumstances:
    """The inputs and the engine of a calibration.

    Attributes:
        river: the folder of the river's 4-bit weights; None if they are made at load.
        longest: most tokens of a prompt.
        tokens: most tokens of an answer.
        engine: report of the test's worker (``river_info``).
        vllm: version of vLLM.
    """

    model: ModelRecord
    river: ModelRecord | None
    config: RiverConfig
    prompts: Prompts
    longest: int
    tokens: int
    engine: dict[str, Any]
    weights: WeightBytes
    vllm: str
    command: list[str]


def guarantee(outcome: Outcome, made: Circumstances) -> str:
    """The guarantee in words, with its assumption."""
    text = "the backbone's own greedy" if made.prompts.answers is None else "the given"
    return (
        f"With probability at least {1 - outcome.delta:g} over the test's prompts, the share of "
        "answer tokens where greedy decoding would not pick the backbone's token is at most "
        f"{round(outcome.limit, 10):g} in expectation over a new prompt of at "
        f"most {made.longest} tokens: along {text} answer, over its first {made.tokens} tokens but "
        "the very first. "
        "Assumes that the test's prompts were drawn independently from what will be served."
    )


def river_config(outcome: Outcome, test: Trial, made: Circumstances) -> RiverConfig:
    """The settings of ``test``, with a record of everything that the guarantee depends on."""
    dial = asdict(test.policy)
    settings = calibrated_settings(made.config)
    tested = recorded_settings(made.config, made.engine)
    tested = {name: value for name, value in tested.items() if name not in settings}
    record = Calibration(
        model=made.model,
        weights=made.river,
        chosen=DialRecord.model_validate(dial),
        settings=settings,
        tested=tested,
        prompts=PromptsRecord(
            source=made.prompts.source,
            sha256=made.prompts.sha256,
            pilot=len(outcome.pilot),
            tested=len(test.losses),
            longest=made.longest,
            tokens=made.tokens,
        ),
        target=TargetRecord(value=round(1 - outcome.limit, 10), delta=outcome.delta),
        achieved=AchievedRecord(
            agreement=round(test.agreement, 5),
            mean_exit_layer=round(test.mean_exit_layer, 3),
            p_value=round(test.p_value, 6),
        ),
        guarantee=guarantee(outcome, made),
        date=date.today().isoformat(),
        river=__version__,
        vllm=made.vllm,
    )
    base = made.config.model_dump(mode="json", exclude_unset=True, exclude={"calibration"})
    return RiverConfig.model_validate({**base, **settings, **dial, "calibration": record})


def as_yaml(config: RiverConfig, command: list[str]) -> str:
    """The file for ``serve --river-config``."""
    data = config.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
    return f"# {' '.join(command)}\n{text}"


def as_json(outcome: Outcome, made: Circumstances, seconds: float) -> dict[str, Any]:
    """All measured figures."""
    chosen = outcome.chosen
    return {
        "command": made.command,
        "model": made.model.model_dump(mode="json"),
        "settings": calibrated_settings(made.config),
        "tested": recorded_settings(made.config, made.engine),
        "prompts": {
            "source": made.prompts.source,
            "sha256": made.prompts.sha256,
            "pilot": len(outcome.pilot),
            "tested": len(outcome.tested),
            "left_out": outcome.left_out,
            "too_long": made.prompts.too_long,
            "longest": made.longest,
            "tokens": made.tokens,
        },
        "target": {"metric": "agreement", "value": round(1 - outcome.limit, 10)},
        "delta": outcome.delta,
        "guarantee": guarantee(outcome, made),
        "num_layers": made.engine["num_layers"],
        "similarity_quantiles": outcome.similarity_quantiles,
        "forced_exits": [
            {"layer": layer, "agreement": agreement} for layer, agreement in outcome.forced.items()
        ],
        "prediction_scale": outcome.scale,
        "candidates": [_prediction(p, made) for p in outcome.candidates],
        "tests": [_test(test, outcome, made) for test in outcome.tests],
        "chosen": None if chosen is None else _test(chosen, outcome, made),
        "seconds": round(seconds, 1),
        "river": __version__,
        "vllm": made.vllm,
    }


def _prediction(prediction: Prediction, made: Circumstances) -> dict[str, Any]:
    return {
        **asdict(prediction.policy),
        "mean_exit_layer": prediction.mean_exit_layer,
        "loss": prediction.loss,
        "weight_bytes_speedup": made.weights.speedup(prediction.mean_exit_layer),
    }


def _test(test: Trial, outcome: Outcome, made: Circumstances) -> dict[str, Any]:
    layers = Counter(layer for part in test.measured for layer in part.exit_layer.tolist())
    bound = upper_bound(test.losses, outcome.delta)
    return {
        **asdict(test.policy),
        "passed": test.passed,
        "p_value": test.p_value,
        "prompts": len(test.losses),
        "figure": 1 - test.loss,
        "bound": 1 - bound,
        "agreement": test.agreement,
        "mean_exit_layer": test.mean_exit_layer,
        "weight_bytes_speedup": made.weights.speedup(test.mean_exit_layer),
        "exit_layers": dict(sorted(layers.items())),
        "losses": test.losses,
    }


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes of one decoder layer and of the LM head, each for the backbone and for the river.

    With one token a step the time goes into reading weights, so the ratio of bytes bounds the
    speed-up. Norms, attention and the engine's own work add to the time.
    """

    backbone: float
    river: float
    head: float
    river_head: float
    num_layers: int

    @classmethod
    def of(cls, engine: dict[str, Any], head: float, group_size: int) -> WeightBytes:
        """The bytes in ``engine``; in 4 bits each group has a bf16 scale and zero point.

        Args:
            engine: its worker's report (``river_info``).
            head: bytes of the LM head on that worker.
            group_size: weights that share a scale.
        """
        held = engine["resident_layers"] + len(engine["fetched_layers"])
        backbone = engine["backbone_bytes"] / held
        share = (0.5 + 4 / group_size) / 2
        river_head = head * share if engine["lm_head"] == "river" else head
        return cls(backbone, backbone * share, head, river_head, engine["num_layers"])

    def speedup(self, mean_exit_layer: float) -> float:
        """Bound of the speed-up over the backbone alone."""
        whole = self.num_layers * self.backbone + self.head
        rest = self.num_layers - mean_exit_layer
        return whole / (mean_exit_layer * self.backbone + rest * self.river + self.river_head)


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
