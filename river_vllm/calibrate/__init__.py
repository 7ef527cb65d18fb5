"""Chooses and tests settings of exits for a target agreement; and the calibrations shipped."""

from __future__ import annotations

from pathlib import Path

from river_vllm.config import load_config_file, parse_config
from river_vllm.errors import RiverError
from river_vllm.weights.fingerprint import fingerprint

AUTO = "auto"
"""Stands for the file that is shipped for the checkpoint."""


def shipped() -> dict[str, Path]:
    """The files, by the name of their model."""
    return {file.stem: file for file in sorted((Path(__file__).parent / "configs").glob("*.yaml"))}


def shipped_for(model: str) -> Path:
    """The file for a checkpoint, found by the hashes of its configuration and weights.

    Args:
        model: its folder; of a hub checkpoint no hash of the weights is known.

    Raises:
        RiverError: there is none; names the shipped files.
    """
    found = fingerprint(model)
    for file in shipped().values():
        record = parse_config(load_config_file(file), file.name).calibration
        if record is not None and record.model.proves(found):
            return file
    raise RiverError(
        f"--river-config {AUTO}: no calibration is shipped for '{model}' (shipped for the "
        f"checkpoints of tools/get_model.py: {', '.join(shipped()) or 'none'}); make one with "
        "river-vllm calibrate"
    )
