"""What each quantiser costs: the river against the backbone along the backbone's own answers.

Every decode token leaves after one layer, so all of the river counts. GPTQ's weights have to be
there (``river-vllm quantize``, on other rows of the data: ``--half first``), and so have the 4-bit
checkpoints of other tools (``quantizer_peers.py``). Each setting runs in a process of its own.

    python experiments/quantizers.py MODEL --data FILE.jsonl --half second [--weights DIR …]
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from river_vllm.config import RiverConfig
from server.cli.engine import prepare, start
from server.cli.prompts import from_files

EXIT = (-1.0, 1)
"""τ and backbone layers: everything leaves after the first layer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="JSONL files")
    parser.add_argument("--half", choices=("first", "second"), help="odd or even lines only")
    parser.add_argument("--quantizers", nargs="*", default=["rtn", "hqq", "gptq"])
    parser.add_argument("--weights", nargs="*", default=[], metavar="DIR", help="4-bit checkpoints")
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[128])
    parser.add_argument("--activations", nargs="+", default=["bf16"])
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=96, help="of each answer at most")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rivers: list[dict[str, Any]] = [
        {"quantizer": name, "group_size": size}
        for name, size in itertools.product(args.quantizers, args.group_sizes)
    ]
    rivers += [{"weights": folder} for folder in args.weights]
    print("| quantiser | groups | activations | top-1 agreement | KL, nats | K | V | tokens |")
    print("|---|---|---|---|---|---|---|---|")
    results = []
    for river, activations in itertools.product(rivers, args.activations):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            result = pool.submit(measure, args, river, activations).result()
        results.append(result)
        low, high = result["agreement_interval"]
        print(
            f"| {result['quantizer']} | {result['groups']} | {activations} "
            f"| {result['agreement']:.1%} "
            f"({low:.1%}-{high:.1%}) | {result['kl']:.4f} ± {result['kl_error']:.4f} "
            f"| {result['keys']:.4f} | {result['values']:.4f} | {result['tokens']} |",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps({"model": args.model, "results": results}, indent=1))


def measure(args: argparse.Namespace, river: dict[str, Any], activations: str) -> dict[str, Any]:
    """One engine, two passes over the same texts; intervals are over texts, at 95 %.

    Args:
        river: where the 4-bit weights come from, as ``RiverConfig`` has it.
    """
    prepare()
    import numpy as np

    from river_vllm.calibration.passes import TeacherForcedEngine
    from river_vllm.calibration.policy import Policy

    config = RiverConfig.model_validate({**river, "activations": activations})
    llm = start(args.model, config, None, 1024, 1.0)
    engine = TeacherForcedEngine(llm)
    found = from_files(args.data, llm.get_tokenizer(), 1024 - args.tokens, 0, args.half)
    texts = [
        text for text in engine.answers(found.tokens[: args.texts], args.tokens) if text.forced
    ]
    engine.run(None, texts, kv=True)
    exits = engine.run(Policy(*EXIT), texts, kv=True)
    text_of = exits.tokens[:, 0]
    agreement, agreement_error = _mean(exits.agrees, text_of)
    kl, kl_error = _mean(exits.kl, text_of)
    assert exits.keys is not None and exits.values is not None
    info = llm.collective_rpc("river_info")[0]
    return {
        "quantizer": Path(river["weights"]).name if "weights" in river else river["quantizer"],
        "groups": "/".join(map(str, info["group_sizes"])),
        "activations": activations,
        "agreement": agreement,
        "agreement_interval": [agreement - agreement_error, min(1.0, agreement + agreement_error)],
        "kl": kl,
        "kl_error": kl_error,
        "keys": float(np.mean(exits.keys[:, 1:])),
        "values": float(np.mean(exits.values[:, 1:])),
        "tokens": len(exits.tokens),
        "river": info,
    }


def _mean(values: Any, text_of: Any) -> tuple[float, float]:
    """Mean over tokens, and half its 95 % interval from the spread between texts."""
    import numpy as np

    mean = float(np.mean(values))
    texts = np.unique(text_of)
    sums = np.array([np.sum(values[text_of == text] - mean) for text in texts])
    return mean, float(1.96 * np.sqrt(np.sum(sums**2)) / len(values))


if __name__ == "__main__":
    main()
