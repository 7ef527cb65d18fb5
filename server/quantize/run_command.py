"""The command's work: engine, text, weights, files."""

from __future__ import annotations

import statistics
import time
from itertools import repeat
from typing import Any

from river_vllm.config import RiverConfig
from server.cli.engine import prepare
from server.cli.files import make_console, write_json
from server.cli.progress import Steps
from server.cli.prompts import Prompts, from_files, self_made
from server.quantize.options import QuantizeOptions, TextOptions
from server.quantize.output import WeightsFolder
from server.quantize.stopping import ended_by_sigterm

LONGEST_SELF_MADE = 128


def run_command(options: QuantizeOptions) -> int:
    """Quantise; the exit status."""
    began = time.monotonic()
    prepare()
    with ended_by_sigterm():
        report = _quantize(options)
    report["seconds"] = round(time.monotonic() - began, 1)
    if options.json_file is not None:
        write_json(options.json_file, report)
    errors = [layer["output_error"] for layer in report["layers"]]
    make_console().print(
        f"{len(errors)} layers by GPTQ, {report['tokens']} tokens of text, error of a "
        f"projection's output {statistics.median(errors):.1%} in the median layer and "
        f"{max(errors):.1%} in the worst: {report['folder']} ({report['seconds']:.0f} s)",
        markup=False,
    )
    return 0


def _quantize(options: QuantizeOptions) -> dict[str, Any]:
    from river_vllm.weights.choose import gptq_folders
    from server.quantize.engine import QuantizingEngine, checkpoint_folder

    limits, group_size = options.engine, options.group_size
    config = RiverConfig(quantizer="gptq", group_size=group_size)
    output = WeightsFolder(
        [options.output] if options.output else gptq_folders(config, options.model)
    )
    settings = {"group_size": group_size, "integer_zeros": options.integer_zeros}
    with output, Steps(not options.no_progress) as steps:
        engine = QuantizingEngine(
            options.model, limits.revision, limits.max_model_len, limits.kv_cache_gib
        )
        prompts = _prompts(options, engine.llm)
        texts = _texts(options.text, engine, prompts)
        layers = []
        steps.step("layers", engine.llm.llm_engine.model_config.get_total_num_hidden_layers())
        for layer in engine.quantize(
            texts, output.unfinished, group_size, options.integer_zeros, limits.hessian_gib
        ):
            layers.append(layer)
            steps.done()
        record = {
            "prompts": prompts.source,
            "prompts_sha256": prompts.sha256,
            "tokens": layers[0]["tokens"],
        }
        output.finish(checkpoint_folder(options.model, limits.revision), settings, record)
    return {
        "model": options.model,
        "folder": str(output.folder),
        **settings,
        **record,
        "layers": layers,
    }


def _prompts(options: QuantizeOptions, llm: Any) -> Prompts:
    text = options.text
    longest = options.engine.max_model_len - text.answer_tokens - 1
    if text.prompts:
        tokenizer = llm.get_tokenizer()
        return from_files(text.prompts, tokenizer, longest, text.seed, text.half, text.answers)
    count = max(1, text.tokens // LONGEST_SELF_MADE)
    return self_made(llm, count, min(longest, LONGEST_SELF_MADE), text.seed)


def _texts(options: TextOptions, engine: Any, prompts: Prompts) -> list[list[int]]:
    """Prompts with their answers: ``--tokens`` tokens, or all that there are."""
    expected = count = 0
    for prompt, answer in zip(prompts.tokens, prompts.answers or repeat(None), strict=False):
        if expected >= options.tokens:
            break
        # The model has not answered yet; most of its answers are as long as they may be.
        own = options.answer_tokens if answer is None else min(len(answer), options.answer_tokens)
        expected += len(prompt) + own
        count += 1
    prompts = prompts.head(count)
    answers = prompts.answers
    if answers is None:
        answers = engine.answers(prompts.tokens, options.answer_tokens)
    pairs = zip(prompts.tokens, answers, strict=True)
    return [[*prompt, *answer[: options.answer_tokens]] for prompt, answer in pairs]
