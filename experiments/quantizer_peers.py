"""4-bit checkpoints of a model by llm-compressor and AutoRound, from the text of River's GPTQ.

``text`` writes what ``river-vllm quantize`` would read with the arguments that follow. ``make``
runs in an environment of its own, with ``llmcompressor`` or ``auto-round``; ``quantizers.py
--weights`` measures what it made. (``-P``: ``auto_round.py`` beside this file is not the package.)

    python experiments/quantizer_peers.py text TEXT.jsonl MODEL --prompts FILE.jsonl --half first
    ENV/bin/python -P experiments/quantizer_peers.py make gptq MODEL TEXT.jsonl OUT
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

BATCH = 4
"""Rows of text at a time in AutoRound; 8 is its own default."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    text = commands.add_parser("text", help="beside vLLM")
    text.add_argument("file", type=Path)
    text.add_argument("quantize", nargs=argparse.REMAINDER, help="as for river-vllm quantize")
    text.set_defaults(run=write_text)
    make = commands.add_parser("make", help="in the quantiser's environment")
    make.add_argument("method", choices=("gptq", "awq", "auto-round"))
    make.add_argument("model")
    make.add_argument("text", type=Path)
    make.add_argument("out")
    make.add_argument("--group-size", type=int, default=64, help="must divide every width")
    make.add_argument("--iterations", type=int, default=200, help="of AutoRound, for each layer")
    make.add_argument("--length", type=int, default=256, help="tokens of its rows of text")
    make.set_defaults(run=make_checkpoint)
    args = parser.parse_args()
    args.run(args)


def write_text(args: argparse.Namespace) -> None:
    """One text a line, as tokens: prompts with the model's own answers."""
    from server.cli.engine import prepare
    from server.cli.main import build_parser
    from server.quantize.text import answered, find_prompts, head

    prepare()
    from server.quantize.engine import QuantizingEngine

    options = build_parser().parse_args(["quantize", *args.quantize]).options
    limits = options.engine
    engine = QuantizingEngine(
        options.model, limits.revision, limits.max_model_len, limits.kv_cache_gib
    )
    known = answered(options.text, engine, find_prompts(options, engine.llm))
    texts = [[*prompt, *answer] for prompt, answer in head(known, options.text.tokens)]
    args.file.write_text("".join(f"{json.dumps(text)}\n" for text in texts))
    print(f"{len(texts)} texts, {sum(map(len, texts))} tokens -> {args.file}")


def make_checkpoint(args: argparse.Namespace) -> None:
    texts = [json.loads(line) for line in args.text.read_text().splitlines()]
    began = time.monotonic()
    if args.method == "auto-round":
        auto_round(args, texts)
    else:
        llm_compressor(args, texts)
    print(f"{args.method}: {time.monotonic() - began:.0f} s -> {args.out}")


def llm_compressor(args: argparse.Namespace, texts: list[list[int]]) -> None:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group"}
    weights |= {"group_size": args.group_size}
    scheme: dict[str, Any] = {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    recipes = {
        "gptq": lambda: [GPTQModifier(**scheme)],
        "awq": lambda: [AWQModifier(duo_scaling="both"), QuantizationModifier(**scheme)],
    }
    rows = [{"input_ids": text, "attention_mask": [1] * len(text)} for text in texts]
    oneshot(
        model=args.model,
        dataset=Dataset.from_list(rows),
        recipe=recipes[args.method](),
        max_seq_length=max(map(len, texts)),
        num_calibration_samples=len(texts),
        output_dir=args.out,
    )


def auto_round(args: argparse.Namespace, texts: list[list[int]]) -> None:
    """Its rows of text have one length, so the texts are put one after the other and cut."""
    import torch
    from auto_round import AutoRound

    tokens = torch.tensor([token for text in texts for token in text])
    rows = tokens[: len(tokens) // args.length * args.length].view(-1, args.length)
    AutoRound(
        args.model,
        bits=4,
        group_size=args.group_size,
        sym=False,
        iters=args.iterations,
        nsamples=len(rows),
        seqlen=args.length,
        batch_size=BATCH,
        dataset=list(rows.split(BATCH)),
        device_map="cpu",
    ).quantize_and_save(args.out, format="auto_awq")


if __name__ == "__main__":
    main()
