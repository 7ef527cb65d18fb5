"""Runs ``river-vllm quantize``: engine, text, weights, files."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from river_vllm.config import RiverConfig
from river_vllm.weights.cache import first_made, gptq_folders
from server.cli.engine import options_of, prepare
from server.cli.fields import EngineLimits
from server.cli.output import Steps, make_console, write_json
from server.cli.process import ended_by_sigterm
from server.cli.prompts import Prompts, from_files, self_made
from server.quantize.options import QuantizeOptions, TextOptions
from server.quantize.output import WeightsFolder

EXTENSION = "river_vllm.engine.quantize.QuantizeExtension"
GIB = 2**30
TEXT_TOKENS = 128
"""Approximate length of a prompt that the model writes, with its answer."""


def quantize(options: QuantizeOptions) -> int:
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
    if report["hidden_by"] is not None:
        print(
            f"note: '{report['hidden_by']}' holds older weights of this model, and a server finds "
            f"those first; --river-weights '{report['folder']}' names these",
            file=sys.stderr,
        )
    return 0


def _quantize(options: QuantizeOptions) -> dict[str, Any]:
    limits, group_size = options.engine, options.group_size
    config = RiverConfig(quantizer="gptq", group_size=group_size)
    places = [place.resolve() for place in gptq_folders(config, options.model)]
    output = WeightsFolder([options.output] if options.output else places)
    settings = {"group_size": group_size, "integer_zeros": options.integer_zeros}
    with output, Steps(not options.no_progress) as steps:
        engine = QuantizingEngine(options.model, limits, steps)
        prompts = find_prompts(options, engine.llm, steps)
        texts = answered(options.text, engine, prompts)
        layers = []
        steps.step("layers", engine.llm.llm_engine.model_config.get_total_num_hidden_layers())
        for layer in engine.quantize(
            texts, output.unfinished, group_size, options.integer_zeros, limits.hessian_gib
        ):
            layers.append(layer)
            steps.step("layers", 0)  # after the part that reads texts
            steps.done()
        record = {
            "prompts": prompts.source,
            "prompts_sha256": list(prompts.files),
            "half": options.text.half,
            "tokens": layers[0]["tokens"],
        }
        output.finish(checkpoint_folder(options.model, limits.revision), settings, record)
    return {
        "model": options.model,
        "folder": str(output.folder),
        "hidden_by": _found_before(output.folder, places),
        **settings,
        **record,
        "layers": layers,
    }


def _found_before(folder: Path, places: Sequence[Path]) -> str | None:
    """The folder that a server would read in place of ``folder``, one of ``places``."""
    found = first_made(places[: places.index(folder)]) if folder in places else None
    return None if found is None else str(found)


def find_prompts(options: QuantizeOptions, llm: Any, steps: Steps) -> Prompts:
    """The prompts of the files, or enough prompts that the model writes."""
    text = options.text
    longest = options.engine.max_model_len - text.answer_tokens - 1
    if text.prompts:
        tokenizer = llm.get_tokenizer()
        return from_files(text.prompts, tokenizer, longest, text.seed, text.half, text.answers)
    count = max(1, text.tokens // TEXT_TOKENS)
    # Odd seeds: 'calibrate' uses the even ones.
    written = steps.requests("prompts written")
    return self_made(llm, count, longest, 2 * text.seed + 1, written)


def answered(options: TextOptions, engine: Any, prompts: Prompts) -> list[list[int]]:
    """As many prompts as ``--tokens`` takes, or all, each followed by its answer."""
    most, given = options.answer_tokens, prompts.answers
    if given is None:
        # There are no answers yet; most of them will reach the limit.
        lengths = [most] * len(prompts.tokens)
    else:
        lengths = [min(len(answer), most) for answer in given]
    whole = [len(prompt) + own for prompt, own in zip(prompts.tokens, lengths, strict=True)]
    tokens = prompts.tokens[: _reached(whole, options.tokens)]
    answers = engine.answers(tokens, most) if given is None else given[: len(tokens)]
    return [[*prompt, *answer[:most]] for prompt, answer in zip(tokens, answers, strict=True)]


def _reached(lengths: Sequence[int], wanted: int) -> int:
    """How many of the first ``lengths`` add up to ``wanted``; all if their sum is less."""
    sums = enumerate(accumulate(lengths, initial=0))
    return next((count for count, total in sums if total >= wanted), len(lengths))


class QuantizingEngine:
    """vLLM's ``LLM`` in this process, not compiled, so that hooks on its modules run.

    Raises:
        RiverError: the model cannot be read, or River does not carry its architecture.
    """

    def __init__(self, model: str, limits: EngineLimits, steps: Steps) -> None:
        from vllm import LLM

        # Every pass over the text must compute all of it.
        own = {"worker_extension_cls": EXTENSION, "enable_prefix_caching": False}
        self.llm = LLM(model, **options_of(model, limits, **own))
        self._folder = checkpoint_folder(model, limits.revision)
        self._steps = steps

    def answers(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """The model's own greedy answers, ``tokens`` long at most."""
        if not tokens:
            return [[] for _ in prompts]
        return self._generate(prompts, tokens, "answers")

    def quantize(
        self,
        texts: Sequence[Sequence[int]],
        out: Path,
        group_size: int,
        integer_zeros: bool,
        hessian_gib: float,
    ) -> Iterator[dict[str, Any]]:
        """Write every decoder layer's weights to ``out``; yields the report of each layer.

        One pass over the texts serves as many layers as ``hessian_gib`` has room for.
        """
        settings = (str(self._folder), str(out), group_size, integer_zeros)
        for layers in _batches(self._call("river_hessian_bytes"), hessian_gib * GIB):
            self._call("river_record_hessians", layers)
            self._generate(texts, 1, "texts read")
            for layer in layers:
                yield self._call("river_quantize_layer", layer, *settings)

    def _generate(
        self, prompts: Sequence[Sequence[int]], tokens: int, name: str
    ) -> list[list[int]]:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=tokens, detokenize=False)
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self.llm.generate(inputs, params, use_tqdm=self._steps.requests(name))
        return [list(output.outputs[0].token_ids) for output in outputs]

    def _call(self, method: str, *args: Any) -> Any:
        return self.llm.collective_rpc(method, args=args)[0]


def checkpoint_folder(model: str, revision: str | None) -> Path:
    """The folder of a checkpoint's files, once an engine has loaded it."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, revision=revision, local_files_only=True))


def _batches(sizes: Sequence[int], limit: float) -> list[list[int]]:
    """Runs of indices whose sizes add up to ``limit`` at most; a larger one is alone."""
    batches: list[list[int]] = []
    room = 0.0
    for index, size in enumerate(sizes):
        if not batches or size > room:
            batches.append([])
            room = limit
        batches[-1].append(index)
        room -= size
    return batches
