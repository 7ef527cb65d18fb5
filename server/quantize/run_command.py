"""Runs ``river-vllm quantize``: engine, text, weights, files."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from river_vllm.config import RiverConfig
from server.cli.engine import prepare
from server.cli.files import make_console, write_json
from server.cli.progress import Steps
from server.cli.stopping import ended_by_sigterm
from server.quantize.options import QuantizeOptions
from server.quantize.output import WeightsFolder
from server.quantize.text import answered, find_prompts


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
        texts = answered(options.text, engine, prompts)
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
        "layers": layers,
    }


def _found_before(folder: Path, places: Sequence[Path]) -> str | None:
    """The folder that a server would read in place of ``folder``, one of ``places``."""
    from river_vllm.weights.cache import first_made

    found = first_made(places[: places.index(folder)]) if folder in places else None
    return None if found is None else str(found)
