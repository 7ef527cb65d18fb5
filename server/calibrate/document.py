"""The outcome as a river config and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import yaml

from river_vllm import __version__
from river_vllm.calibration.bounds import upper_bound
from river_vllm.calibration.certify import Trial
from river_vllm.calibration.exit_costs import Prediction
from river_vllm.calibration.record import (
    AchievedRecord,
    Calibration,
    DialRecord,
    ModelRecord,
    PromptsRecord,
    TargetRecord,
    calibrated_settings,
    recorded_settings,
)
from river_vllm.calibration.run import Outcome
from river_vllm.calibration.target import KL_CLIP, Target
from river_vllm.config import RiverConfig
from server.calibrate.speed import WeightBytes
from server.cli.prompts import Prompts

_METRICS = {
    "agreement": "the share of answer tokens where greedy decoding would not pick the backbone's "
    "token",
    "kl": f"the mean KL(backbone ‖ river) in nats, each token's clipped at {KL_CLIP:g},",
    "depth": "the mean number of backbone layers that a token runs",
}


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a calibration was made with.

    Attributes:
        river: the folder of the river's 4-bit weights; None where they are made at load.
        longest: tokens of a prompt, at most.
        tokens: of each answer, at most.
        engine: what the worker of the test reported (``river_info``).
        vllm: its version.
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


def guarantee(target: Target, delta: float, made: Circumstances) -> str:
    """The guarantee in words, with its assumption."""
    text = "the backbone's own greedy" if made.prompts.answers is None else "the given"
    limit = target.value if target.metric != "agreement" else round(1 - target.value, 10)
    return (
        f"With probability at least {1 - delta:g} over the test's prompts, "
        f"{_METRICS[target.metric]} is at most {limit:g} in expectation over a new prompt of at "
        f"most {made.longest} tokens: along {text} answer, over its first {made.tokens} tokens but "
        "the very first. "
        "Assumes that the test's prompts were drawn independently from what will be served."
    )


def river_config(outcome: Outcome, test: Trial, made: Circumstances) -> RiverConfig:
    """The settings of ``test``, with a record of everything that the guarantee depends on."""
    dial = test.policy.as_config()
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
        target=TargetRecord(
            metric=outcome.target.metric, value=outcome.target.value, delta=outcome.delta
        ),
        achieved=AchievedRecord(
            agreement=round(test.agreement, 5),
            kl=round(test.kl, 6),
            mean_exit_layer=round(test.mean_exit_layer, 3),
            p_value=round(test.p_value, 6),
        ),
        guarantee=guarantee(outcome.target, outcome.delta, made),
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
    """Everything that was measured."""
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
        "target": {"metric": outcome.target.metric, "value": outcome.target.value},
        "delta": outcome.delta,
        "guarantee": guarantee(outcome.target, outcome.delta, made),
        "num_layers": outcome.target.num_layers,
        "similarity_quantiles": outcome.similarity_quantiles,
        "forced_exits": [asdict(item) for item in outcome.forced],
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
        **prediction.policy.as_config(),
        "mean_exit_layer": prediction.mean_exit_layer,
        "loss": prediction.loss,
        "kl_clipped": prediction.kl,
        "weight_bytes_speedup": made.weights.speedup(prediction.mean_exit_layer),
    }


def _test(test: Trial, outcome: Outcome, made: Circumstances) -> dict[str, Any]:
    target = outcome.target
    layers = Counter(layer for part in test.measured for layer in part.exit_layer.tolist())
    bound = upper_bound(test.losses, outcome.delta)
    return {
        **test.policy.as_config(),
        "passed": test.passed,
        "p_value": test.p_value,
        "prompts": len(test.losses),
        "figure": target.figure(test.loss),
        "bound": target.figure(bound),
        "agreement": test.agreement,
        "kl": test.kl,
        "mean_exit_layer": test.mean_exit_layer,
        "weight_bytes_speedup": made.weights.speedup(test.mean_exit_layer),
        "exit_layers": dict(sorted(layers.items())),
        "key_similarity": _mean([m.keys for m in test.measured]),
        "value_similarity": _mean([m.values for m in test.measured]),
        "losses": test.losses,
    }


def _mean(parts: list[Any]) -> list[float] | None:
    known = [part for part in parts if part is not None]
    return known[0].mean(axis=0).round(5).tolist() if known else None
