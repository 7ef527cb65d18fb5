"""River configs that ``river-vllm calibrate`` made for checkpoints, found by their fingerprint."""

from __future__ import annotations

from pathlib import Path

from river_vllm.calibration.fingerprint import fingerprint
from river_vllm.config import load_config_file, parse_config
from river_vllm.errors import RiverError

AUTO = "auto"
"""Instead of a file's name: the one that is shipped for the checkpoint."""


def shipped() -> dict[str, Path]:
    """Files by the name of their model."""
    return {file.stem: file for file in sorted(Path(__file__).parent.glob("*.yaml"))}


def shipped_for(model: str) -> Path:
    """The file whose calibration was made on this very checkpoint.

    Args:
        model: a folder; a hub name has no fingerprint before it is loaded.

    Raises:
        RiverError: none is; names those that are there.
    """
    found = fingerprint(model)
    for file in shipped().values():
        record = parse_config(load_config_file(file), file.name).calibration
        if record is not None and found.weights_sha256 is not None:
            known = record.model
            if (known.config_sha256, known.weights_sha256) == (
                found.config_sha256,
                found.weights_sha256,
            ):
                return file
    raise RiverError(
        f"--river-config {AUTO}: no calibration is shipped for '{model}' (shipped for the "
        f"checkpoints of tools/get_model.py: {', '.join(shipped()) or 'none'}); make one with "
        "river-vllm calibrate"
    )
