"""Whether the river's weights have seen the prompts of the test."""

from __future__ import annotations

import json
from pathlib import Path

from server.cli.prompts import Prompts


def seen_by_weights(folder: Path, prompts: Prompts, half: str | None) -> str | None:
    """A note if ``river-vllm quantize`` made the weights in ``folder`` with rows of the same files;
    None if it used other files or the other half.

    Args:
        half: half of the files' rows that ``prompts`` are from.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        made = config["quantization_config"]["made_with"]
    except (OSError, ValueError, KeyError, TypeError):  # made by another program
        return None
    if not set(made.get("prompts_sha256", ())) & set(prompts.files):
        return None
    if half is not None and made.get("half") not in (None, half):
        return None
    return (
        f"the weights in '{folder}' were made with rows of the same files ({made['prompts']}): the "
        "guarantee does not hold for prompts that they have not seen; use --half first for "
        "'quantize' and --half second here"
    )
