"""River's options of ``serve``, and the settings and keys that they give."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from river_vllm.calibrate import AUTO, shipped_for
from river_vllm.config import Affects, RiverConfig, combined, load_config_file
from river_vllm.errors import RiverError
from river_vllm.host import text_of
from server.cli.arguments import FieldsOf
from server.telemetry.progress import STALL_SECONDS

KEY_VARIABLES = ("RIVER_API_KEY", "VLLM_API_KEY")
KEY_FILE_VARIABLE = "RIVER_API_KEY_FILE"
METRICS_KEY_VARIABLE = "RIVER_METRICS_KEY"
METRICS_KEY_FILE_VARIABLE = "RIVER_METRICS_KEY_FILE"


def options_of(settings: type[RiverConfig]) -> FieldsOf:
    """Options for all settings except those that only ``river-vllm calibrate`` writes."""
    written = settings.affecting(Affects.FILE)
    return FieldsOf(settings, tuple(n for n in settings.model_fields if n not in written), "river-")


RIVER_OPTIONS = options_of(RiverConfig)


def add_river_options(parser: argparse.ArgumentParser) -> None:
    """Add River's group of ``serve --help``."""
    group = parser.add_argument_group("River", "the exit river")
    RIVER_OPTIONS.add(group)
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
    group.add_argument(
        "--metrics-key-file",
        metavar="FILE",
        default=None,
        help="file with one key per line that opens GET /metrics, /river and /river/stats and "
        f"nothing else (default: ${METRICS_KEY_FILE_VARIABLE})",
    )


def river_parser() -> argparse.ArgumentParser:
    """A parser of River's own options of ``serve``, without vLLM's, for the reference."""
    parser = argparse.ArgumentParser(prog="river-vllm serve", add_help=False)
    add_river_options(parser)
    return parser


def river_config(args: argparse.Namespace) -> RiverConfig:
    """The settings of the file, overridden by the command line.

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
    file = {} if path is None else {path: load_config_file(path)}
    return combined({**file, "command line": RIVER_OPTIONS.given(args)})


def api_keys(args: argparse.Namespace) -> list[str]:
    """Keys from the command line, a file, or the environment, in this order.

    Raises:
        RiverError: the file cannot be read, has an empty name, or holds no key.
    """
    if args.api_key:
        if not all(args.api_key):
            raise RiverError("--api-key is empty: leave it out to read the key from elsewhere")
        return list(args.api_key)
    keys = _keys_in_file("--api-key-file", args.api_key_file, KEY_FILE_VARIABLE)
    if keys is not None:
        return keys
    return [key for name in KEY_VARIABLES if (key := os.environ.get(name))][:1]


def metrics_keys(args: argparse.Namespace) -> list[str]:
    """Keys that read metrics and the state, from a file or the environment, in this order.

    Args:
        args: ``api_key`` holds the API keys.

    Raises:
        RiverError: the file cannot be used, no API key is set, or a key is an API key too.
    """
    keys = _keys_in_file("--metrics-key-file", args.metrics_key_file, METRICS_KEY_FILE_VARIABLE)
    if keys is None:
        keys = [key for key in [os.environ.get(METRICS_KEY_VARIABLE)] if key]
    if keys and not args.api_key:
        raise RiverError(
            "a metrics key without an API key: every route would be open; set an API key too "
            f"(${KEY_FILE_VARIABLE}), or leave the metrics key out"
        )
    if set(keys) & set(args.api_key):
        raise RiverError(
            "a metrics key is among the API keys, which open every route: take it out of those"
        )
    return keys


def _keys_in_file(option: str, path: str | None, variable: str) -> list[str] | None:
    """The keys in the file named by the option, else by the variable; None without a file.

    Raises:
        RiverError: the file cannot be read, has an empty name, or holds no key.
    """
    name = option
    if path is None:
        name, path = variable, os.environ.get(variable)
    if path is None:
        return None
    if not path:
        raise RiverError(f"{name} is empty: name a file of keys, or leave it out")
    place = f"{name} '{path}'"
    if lines := text_of(Path(path), place).split():
        return lines
    raise RiverError(f"{place} holds no key: write one on each line")
