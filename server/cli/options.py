"""River's options of ``serve``, and the settings that they amount to."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any, get_args

from river_vllm.calibrations import AUTO, shipped_for
from river_vllm.config import RiverConfig, load_config_file, parse_config
from river_vllm.errors import RiverError
from server.telemetry.progress import STALL_SECONDS

KEY_VARIABLES = ("RIVER_API_KEY", "VLLM_API_KEY")
KEY_FILE_VARIABLE = "RIVER_API_KEY_FILE"

_FIELDS = {
    "threshold": "default exit threshold τ in [-1, 1]; 1.0 never exits",
    "min_layers": "backbone layers that every token runs",
    "prefill": "prompts on the backbone, or sequence-level exit",
    "scope": "who leaves together: each token on its own, a step's tokens once all have settled, "
    "or where all settle at one layer",
    "criterion": "what τ is compared with: the state transition similarity, or the state's norm",
    "quantizer": "how the 4-bit weights are made; awq only with --river-weights",
    "weights": "folder with the layers already in 4 bit: compressed-tensors, AWQ, GPTQ, or made by "
    "'river-vllm quantize'",
    "group_size": "input features that share one scale",
    "max_rows": "tokens of a step that may exit: auto (while it pays), a number, or all (always)",
    "resident_layers": "leading layers that keep bf16 weights: all, a number, or auto (by depths)",
    "deep": "beyond the resident layers: exit, or fetch the layer from the checkpoint",
    "activations": "what the 4-bit products multiply by; int8 (CPU) goes on paying with many rows",
    "lm_head": "the bf16 LM head, or 4-bit candidates with exact logits for the best",
    "lm_head_candidates": "logits per token that the river's LM head makes exact",
    "cache_dir": "keeps 4-bit weights between starts: auto (beside a local checkpoint, else the "
    "user's cache), off, or a folder",
    "kernel": "4-bit product: auto (the first of the next three that takes the shape), River's "
    "own, torch's or vLLM's; or weights expanded to bf16",
    "verify": "tokens that the river may draft for the backbone to check in one pass, lossless; "
    "0: none, tokens exit instead (default: 4, or 0 where an option of exits is given)",
    "draft": "as many tokens as pay, up to --river-verify, or always so many",
}


def add_river_options(parser: argparse.ArgumentParser) -> None:
    """River's group in ``serve --help``."""
    group = parser.add_argument_group("River", "the exit river")
    defaults = RiverConfig()
    for name, text in _FIELDS.items():
        annotation = RiverConfig.model_fields[name].annotation
        choices = get_args(annotation) or None
        kind: Any = type(choices[0]) if choices else annotation
        if name in ("max_rows", "resident_layers"):
            kind, choices = _count, None
        if name in ("weights", "verify"):
            kind, choices = (str if name == "weights" else int), None
        default = getattr(defaults, name)
        group.add_argument(
            f"--river-{name.replace('_', '-')}",
            type=kind,
            choices=choices,
            default=None,
            help=text if default is None else f"{text} (default: {default})",
        )
    group.add_argument(
        "--river-config",
        metavar="FILE",
        default=None,
        help="YAML or JSON file of River settings, as 'river-vllm calibrate' writes it; "
        f"{AUTO}: the one that is shipped for this checkpoint",
    )
    group.add_argument(
        "--river-stall-seconds",
        type=float,
        default=STALL_SECONDS,
        help="/ready turns 503 when work waits and no step has finished for this long",
    )
    group.add_argument(
        "--river-open-metrics",
        action="store_true",
        help="/metrics needs no key even where other routes do",
    )
    group.add_argument(
        "--api-key-file",
        metavar="FILE",
        default=None,
        help=f"file with one API key per line (default: ${KEY_FILE_VARIABLE})",
    )


def river_parser() -> argparse.ArgumentParser:
    """River's own options of ``serve`` by themselves, for the reference; vLLM's join them there."""
    parser = argparse.ArgumentParser(prog="river-vllm serve", add_help=False)
    add_river_options(parser)
    return parser


def _count(text: str) -> str | int:
    """``all``, ``auto`` or a number; the configuration checks its range."""
    return text if text in ("all", "auto") else int(text)


def river_config(args: argparse.Namespace) -> RiverConfig:
    """The file's settings, then the command line's.

    Raises:
        RiverError: names the source, the field, the value and what is allowed.
    """
    if not 0 < args.river_stall_seconds < math.inf:
        raise RiverError(
            f"--river-stall-seconds = {args.river_stall_seconds}: must be above 0 and finite"
        )
    path = args.river_config
    if path == AUTO:
        path = str(shipped_for(args.model))
    config = RiverConfig() if path is None else parse_config(load_config_file(path), path)
    given: dict[str, Any] = {
        name: value for name in _FIELDS if (value := getattr(args, f"river_{name}")) is not None
    }
    return config.merged(given, "command line")


def api_keys(args: argparse.Namespace) -> list[str]:
    """Keys from the command line, a file, or the environment, in this order.

    Raises:
        RiverError: the file cannot be read, or holds no key.
    """
    if args.api_key:
        if not all(args.api_key):
            raise RiverError("--api-key is empty: leave it out to read the key from elsewhere")
        return list(args.api_key)
    path = args.api_key_file or os.environ.get(KEY_FILE_VARIABLE)
    if path:
        try:
            lines = Path(path).read_text(encoding="utf-8").split()
        except OSError as error:
            raise RiverError(f"API key file '{path}': {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise RiverError(f"API key file '{path}' is not UTF-8 text") from None
        if not lines:
            raise RiverError(f"API key file '{path}' holds no key: write one on each line")
        return lines
    return [key for name in KEY_VARIABLES if (key := os.environ.get(name))][:1]
