"""The command's work: engine, text, weights, files."""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import repeat
from typing import Any

from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError
from server.bench.errors import BenchError
from server.bench.output.files import OutputFiles, write_json
from server.bench.output.table import make_console
from server.calibrate.engine import prepare
from server.calibrate.progress import Steps
from server.calibrate.prompts import Prompts, from_files, self_made
from server.quantize.output import WeightsFolder
from server.quantize.stopping import ended_by_sigterm

LONGEST_SELF_MADE = 128


def run_command(args: argparse.Namespace) -> int:
    """Quantise; the exit status."""
    try:
        OutputFiles(json=args.json).check()
        began = time.monotonic()
        prepare()
        with ended_by_sigterm():
            report = _quantize(args)
    except BenchError as error:
        raise RiverError(str(error)) from None
    report["seconds"] = round(time.monotonic() - began, 1)
    if args.json is not None:
        write_json(args.json, report)
    errors = [layer["output_error"] for layer in report["layers"]]
    make_console().print(
        f"{len(errors)} layers by GPTQ, {report['tokens']} tokens of text, error of a "
        f"projection's output {statistics.median(errors):.1%} in the median layer and "
        f"{max(errors):.1%} in the worst: {report['folder']} ({report['seconds']:.0f} s)",
        markup=False,
    )
    return 0


def _quantize(args: argparse.Namespace) -> dict[str, Any]:
    from river_vllm.weights.choose import gptq_folders
    from server.quantize.engine import QuantizingEngine, checkpoint_folder

    config = RiverConfig(quantizer="gptq", group_size=args.group_size)
    output = WeightsFolder([args.output] if args.output else gptq_folders(config, args.model))
    settings = {"group_size": args.group_size, "integer_zeros": args.integer_zeros}
    with output, Steps(not args.no_progress) as steps:
        engine = QuantizingEngine(args.model, args.revision, args.max_model_len, args.kv_cache_gib)
        prompts = _prompts(args, engine.llm)
        texts = _texts(args, engine, prompts)
        layers = []
        steps.step("layers", engine.llm.llm_engine.model_config.get_total_num_hidden_layers())
        for layer in engine.quantize(
            texts, output.unfinished, args.group_size, args.integer_zeros, args.hessian_gib
        ):
            layers.append(layer)
            steps.advance(1)
        record = {
            "prompts": prompts.source,
            "prompts_sha256": prompts.sha256,
            "tokens": layers[0]["tokens"],
        }
        output.finish(checkpoint_folder(args.model, args.revision), settings, record)
    return {
        "model": args.model,
        "folder": str(output.folder),
        **settings,
        **record,
        "layers": layers,
    }


def _prompts(args: argparse.Namespace, llm: Any) -> Prompts:
    longest = args.max_model_len - args.answer_tokens - 1
    if longest < 1:
        raise BenchError(
            f"--answer-tokens {args.answer_tokens}: expected less than --max-model-len "
            f"{args.max_model_len} less one"
        )
    if args.prompts:
        tokenizer = llm.get_tokenizer()
        return from_files(args.prompts, tokenizer, longest, args.seed, args.half, args.answers)
    if args.answers or args.half:
        raise BenchError("--answers, --half: name parts of the rows of --prompts FILE")
    count = max(1, args.tokens // LONGEST_SELF_MADE)
    return self_made(llm, count, min(longest, LONGEST_SELF_MADE), args.seed)


def _texts(args: argparse.Namespace, engine: Any, prompts: Prompts) -> list[list[int]]:
    """Prompts with their answers: ``--tokens`` tokens, or all that there are."""
    expected = count = 0
    for prompt, answer in zip(prompts.tokens, prompts.answers or repeat(None), strict=False):
        if expected >= args.tokens:
            break
        # The model has not answered yet; most of its answers are as long as they may be.
        own = args.answer_tokens if answer is None else min(len(answer), args.answer_tokens)
        expected += len(prompt) + own
        count += 1
    prompts = prompts.head(count)
    answers = prompts.answers
    if answers is None:
        answers = engine.answers(prompts.tokens, args.answer_tokens)
    pairs = zip(prompts.tokens, answers, strict=True)
    return [[*prompt, *answer[: args.answer_tokens]] for prompt, answer in pairs]
