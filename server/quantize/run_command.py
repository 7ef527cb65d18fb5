"""Runs ``river-vllm quantize``: engine, text, weights, files."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from river_vllm.config import RiverConfig
from river_vllm.modes.verified.token_list import FILE_NAME, Text, TokenList, counted
from river_vllm.weights.fingerprint import fingerprint
from server.cli.engine import prepare
from server.cli.files import make_console, write_json
from server.cli.progress import Steps
from server.cli.stopping import ended_by_sigterm
from server.quantize.options import QuantizeOptions
from server.quantize.output import WeightsFolder
from server.quantize.text import answered, find_prompts, head


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
    make_console().print(_drafts(report["draft_tokens"]), markup=False)
    if report["hidden_by"] is not None:
        print(
            f"note: '{report['hidden_by']}' holds older weights of this model, and a server finds "
            f"those first; --river-weights '{report['folder']}' names these",
            file=sys.stderr,
        )
    return 0


def _quantize(options: QuantizeOptions) -> dict[str, Any]:
    from river_vllm.weights.cache import gptq_folders
    from server.quantize.engine import QuantizingEngine, checkpoint_folder

    limits, group_size = options.engine, options.group_size
    config = RiverConfig(quantizer="gptq", group_size=group_size)
    places = [place.resolve() for place in gptq_folders(config, options.model)]
    output = WeightsFolder([options.output] if options.output else places)
    settings = {"group_size": group_size, "integer_zeros": options.integer_zeros}
    with output, Steps(not options.no_progress) as steps:
        engine = QuantizingEngine(
            options.model, limits.revision, limits.max_model_len, limits.kv_cache_gib
        )
        prompts = find_prompts(options, engine.llm)
        known = answered(options.text, engine, prompts)
        texts = [[*prompt, *answer] for prompt, answer in head(known, options.text.tokens)]
        found = _list(options, engine, known, prompts.source)
        if found is not None:
            found.write(output.unfinished / FILE_NAME)
        layers = []
        steps.step("layers", engine.llm.llm_engine.model_config.get_total_num_hidden_layers())
        for layer in engine.quantize(
            texts, output.unfinished, group_size, options.integer_zeros, limits.hessian_gib
        ):
            layers.append(layer)
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
        "draft_tokens": None if found is None else found.model_dump(include={"tokens", "counted"}),
        "layers": layers,
    }


def _found_before(folder: Path, places: Sequence[Path]) -> str | None:
    """The folder that a server would read in place of ``folder``, one of ``places``."""
    from river_vllm.weights.cache import first_made

    found = first_made(places[: places.index(folder)]) if folder in places else None
    return None if found is None else str(found)


def _list(
    options: QuantizeOptions, engine: Any, texts: Sequence[Text], source: str
) -> TokenList | None:
    """The tokens that drafts are picked from; None if not wanted or with too few answers."""
    if not options.text.list_tokens:
        return None
    model = fingerprint(options.model, options.engine.revision)
    return counted(texts, engine.vocabulary, engine.beside_text, [model], source)


def _drafts(made: dict[str, Any] | None) -> str:
    if made is None:
        return "drafts are picked from every token: no list, or too few answers to choose one"
    on = made["counted"]
    return (
        f"drafts are picked from {made['tokens']} tokens, which cover {on['coverage']:.2%} of "
        f"answers that were not counted ({on['tokens']} tokens of answers)"
    )
