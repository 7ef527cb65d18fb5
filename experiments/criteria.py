"""Exit criteria of O(hidden) cost, compared at equal mean depth.

On the backbone's own greedy answers every criterion of a token is taken after every layer, and the
token's cost of leaving after some of the layers is measured (teacher-forced, every token leaving
there). Then policies "leave where the criterion is above a threshold" are compared by the
divergence that they would have cost at the same mean exit layer, with one threshold for all layers
and with a quantile of each layer's own. Intervals are bootstrapped over prompts.

    python experiments/criteria.py MODEL --prompts FILE.jsonl [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from server.cli.engine import prepare, start
from server.cli.prompts import from_files

DEPTHS = (0.15, 0.3, 0.5)
"""Mean exit layers that are compared, as shares of the layers."""
QUANTILES = 60
RESAMPLES = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--prompts", type=Path, action="append", required=True)
    parser.add_argument("--number", type=int, default=96, help="prompts (default: 96)")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--quantizer", default="hqq")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    prepare()
    data = measure(args)
    report(args, *data)


def measure(args: argparse.Namespace) -> tuple[Any, ...]:
    """Criteria ``{name: [tokens, L − 1]}``, forced passes by layer, and each token's prompt."""
    import torch

    from river_vllm.calibration.passes import TeacherForcedEngine
    from river_vllm.calibration.policy import Policy
    from river_vllm.calibration.run import Calibrator, pilot_layers
    from river_vllm.config import RiverConfig

    config = RiverConfig.model_validate(
        {"group_size": args.group_size, "quantizer": args.quantizer}
    )
    llm = start(args.model, config, None, 1024, 1.0)
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker
    river = worker.model_runner.get_model().river
    prompts = from_files(args.prompts, llm.get_tokenizer(), 900, 0)
    calibrator = Calibrator(TeacherForcedEngine(llm), lambda *_: None, lambda _: None)
    observer = worker.river_observer
    answers = calibrator.answer(prompts.tokens[: args.number * 5 // 4], args.tokens)
    texts = [text for text in answers if text.forced]
    texts, extra = texts[: args.number], texts[args.number :]

    sums: dict[int, torch.Tensor] = {}
    counts: dict[int, int] = {}

    def add(layer: int, state: torch.Tensor) -> None:
        sums[layer] = sums.get(layer, torch.zeros(1)) + state.float().sum(dim=0)
        counts[layer] = counts.get(layer, 0) + len(state)

    def watch_means(layers_run: int, before: torch.Tensor, after: torch.Tensor) -> None:
        if layers_run == 1:
            add(0, before)
        add(layers_run, after)

    with Watched(observer, watch_means):
        calibrator.measure("means", None, extra, 1_000_000)
    means = {layer: total / counts[layer] for layer, total in sums.items()}
    found: dict[str, list[list[torch.Tensor]]] = {}

    def watch(layers_run: int, before: torch.Tensor, after: torch.Tensor) -> None:
        centred = (means[layers_run - 1], means[layers_run])
        for name, values in criteria(before.float(), after.float(), *centred).items():
            steps = found.setdefault(name, [])
            if layers_run == 1:
                steps.append([])
            steps[-1].append(values)

    with Watched(observer, watch):
        backbone = calibrator.measure("backbone", None, texts, 0, kv=True)
    forced = {}
    for layer in pilot_layers(river.num_layers):
        forced[layer] = calibrator.measure("forced", Policy(-1.0, layer), texts, 0, kv=True)
    stacked = {
        name: torch.cat([torch.stack(step, dim=1) for step in steps]).numpy()
        for name, steps in found.items()
    }
    return stacked, backbone, forced, river.num_layers


class Watched:
    """Shows the states of a pass to ``watch`` too, beside the observer itself."""

    def __init__(self, observer: Any, watch: Any) -> None:
        self._observer, self._watch = observer, watch

    def __enter__(self) -> None:
        own, watch = self._observer.watch, self._watch

        def both(*step: Any) -> None:
            own(*step)
            watch(*step)

        self._observer.watch = both

    def __exit__(self, *_: object) -> None:
        del self._observer.watch


def criteria(before: Any, after: Any, mean_before: Any, mean_after: Any) -> dict[str, Any]:
    """Each higher where a state has settled; float32 ``[rows]``."""
    import torch

    from river_vllm.criterion import transition_similarity

    similarity = transition_similarity(before, after)
    norm = torch.linalg.vector_norm
    update = norm(after - before, dim=-1)
    return {
        "cosine (the paper's)": similarity,
        "relative update": -update / norm(after, dim=-1),
        "update over the state before": -update / norm(before, dim=-1),
        "norm-weighted cosine": -(1 - similarity) * norm(after, dim=-1),
        "cosine around the layer's mean": transition_similarity(
            before - mean_before, after - mean_after
        ),
        "norm of the state": -norm(after, dim=-1),
    }


def report(
    args: argparse.Namespace, found: dict[str, Any], backbone: Any, forced: Any, layers: int
) -> None:
    """Print the tables."""
    import numpy as np

    from river_vllm.calibration.exit_costs import ExitCosts
    from river_vllm.calibration.target import Target

    cost = ExitCosts(backbone, forced, Target("kl", 1.0, layers)).kl
    prompts = backbone.tokens[:, 0]
    rng = np.random.default_rng(0)
    found = {**found, "chance": rng.random(next(iter(found.values())).shape)}
    results: dict[str, Any] = {"correlation": {}, "kl": {}}
    print(f"{args.model}: {len(prompts)} tokens of {len(np.unique(prompts))} prompts\n")
    print("| rank correlation with | " + " | ".join(f"layer {layer}" for layer in forced) + " |")
    print("|---|" + "---|" * len(forced))
    for name, values in found.items():
        for what in ("KL", "V error"):
            row = []
            for layer, own in forced.items():
                error = own.kl if what == "KL" else 1 - own.values[:, -1]
                row.append(_spearman(values[:, layer - 1], error))
            results["correlation"][f"{name}, {what}"] = row
            print(f"| {name}, {what} | " + " | ".join(f"{x:+.2f}" for x in row) + " |")
    print("\n| KL at mean exit layer | " + " | ".join(f"{d * layers:.1f}" for d in DEPTHS) + " |")
    print("|---|" + "---|" * len(DEPTHS))
    fixed = np.array([cost[layer].mean() for layer in range(1, layers + 1)])
    row = [float(np.interp(d * layers, np.arange(1, layers + 1), fixed)) for d in DEPTHS]
    print("| one exit layer for all | " + " | ".join(f"{x:.5f}" for x in row) + " |")
    results["kl"]["one exit layer for all"] = row
    tables = {}
    for name, values in found.items():
        for kind in ("one threshold", "own quantiles"):
            lines = _policies(values, kind == "own quantiles", layers)
            tables[f"{name}, {kind}"] = lines
    base = tables["cosine (the paper's), one threshold"]
    groups = [np.flatnonzero(prompts == p) for p in np.unique(prompts)]
    samples = [rng.integers(0, len(groups), len(groups)) for _ in range(RESAMPLES)]
    for name, lines in tables.items():
        cells = []
        for depth in DEPTHS:
            mine, theirs = (_token_cost(x, cost, depth * layers) for x in (lines, base))
            per_prompt = np.array([(mine - theirs)[g].mean() for g in groups])
            spread = np.quantile([per_prompt[s].mean() for s in samples], [0.025, 0.975])
            cells.append(f"{mine.mean():.5f} ({1e5 * spread[0]:+.0f} … {1e5 * spread[1]:+.0f} e-5)")
            results["kl"].setdefault(name, []).append([float(mine.mean()), *spread.tolist()])
        print(f"| {name} | " + " | ".join(cells) + " |")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


def _policies(values: Any, own: bool, layers: int) -> Any:
    """Exit layers ``[policies, tokens]`` with thresholds from easy to hard."""
    import numpy as np

    rows = []
    for share in np.linspace(0.0, 1.0, QUANTILES):
        limits = np.quantile(values, share, axis=0 if own else None)
        leaves = values > limits
        rows.append(np.where(leaves.any(axis=1), leaves.argmax(axis=1) + 1, layers))
    return np.stack(rows)


def _token_cost(exits: Any, cost: Any, depth: float) -> Any:
    """Per token, between the two policies around a mean exit layer."""
    import numpy as np

    means = exits.mean(axis=1)
    order = np.argsort(means)
    high = int(np.clip(np.searchsorted(means[order], depth), 1, len(order) - 1))
    a, b = order[high - 1], order[high]
    share = (depth - means[a]) / max(means[b] - means[a], 1e-9)
    share = min(1.0, max(0.0, share))
    tokens = np.arange(exits.shape[1])
    return (1 - share) * cost[exits[a], tokens] + share * cost[exits[b], tokens]


def _spearman(a: Any, b: Any) -> float:
    import numpy as np

    ranks = [np.argsort(np.argsort(x)).astype(float) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


if __name__ == "__main__":
    main()
