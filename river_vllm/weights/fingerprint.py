"""Tell one checkpoint from another without reading all of its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from river_vllm.errors import RiverError
from river_vllm.guarantee import ModelRecord

WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
SAMPLES = 16
SAMPLE_BYTES = 1 << 16


def fingerprint(model: str, revision: str | None = None) -> ModelRecord:
    """The identity of a checkpoint, as far as it is known.

    For a folder: the hash of its configuration, and a hash of its weight files' names, sizes and 16
    samples of each. Samples suffice: two fine-tunes of a model differ in nearly every byte. For a
    hub checkpoint of a revision (the main branch without): the commit and the hash of its
    configuration, if they are on this machine; the hub is not asked.
    """
    folder = Path(model)
    if not folder.is_dir():
        return _of_hub(model, revision)
    config = folder / "config.json"
    digest = hashlib.sha256(config.read_bytes()).hexdigest() if config.exists() else None
    name, weights = folder.resolve().name, _weights(folder)
    return ModelRecord(name=name, revision=revision, config_sha256=digest, weights_sha256=weights)


def _of_hub(model: str, revision: str | None) -> ModelRecord:
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(model, "config.json", revision=revision)
    except ValueError:  # not the name of a hub checkpoint
        config = None
    if not isinstance(config, str):
        return ModelRecord(name=model, revision=revision)
    # …/snapshots/COMMIT/config.json
    path = Path(config)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ModelRecord(name=model, revision=path.parent.name, config_sha256=digest)


def served_checkpoint(model_config: Any) -> ModelRecord:
    """The checkpoint that an engine serves; ``model_config`` is vLLM's."""
    commit = getattr(model_config.hf_config, "_commit_hash", None)
    return fingerprint(model_config.model, commit or getattr(model_config, "revision", None))


def check_model(calibrated: ModelRecord, served: ModelRecord, model: str) -> None:
    """Refuse settings that were calibrated for another checkpoint than ``model``, the one served.

    Raises:
        RiverError: they differ in something that is known of both.
    """
    for name in ("config_sha256", "weights_sha256", "revision"):
        known, found = getattr(calibrated, name), getattr(served, name)
        if known is not None and found is not None and known != found:
            raise RiverError(
                f"the river config was calibrated for the model '{calibrated.name}', and "
                f"'{model}' is another ({name} differs); calibrate this one, or take the "
                "'calibration' block out of the file to use its settings without their guarantee"
            )


def check_weights(calibrated: ModelRecord | None, folder: Path | None) -> None:
    """Refuse settings that were calibrated with other 4-bit weights.

    Args:
        calibrated: their folder at the test; None where they were made at load.
        folder: the one that is served.

    Raises:
        RiverError: the folders differ, or only one of the two weights was made at load.
    """
    found = None if folder is None else fingerprint(str(folder)).weights_sha256
    known = None if calibrated is None else calibrated.weights_sha256
    if found != known:
        name = "made at load" if calibrated is None else f"in '{calibrated.name}'"
        ours = "made at load" if folder is None else f"in '{folder}'"
        raise RiverError(
            f"the river's weights {ours} do not go with the calibration, "
            f"whose weights were {name}; calibrate again, or leave the calibration out"
        )


def _weights(folder: Path) -> str | None:
    files = sorted({file for pattern in WEIGHTS for file in folder.glob(pattern)})
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size};".encode())
        with file.open("rb") as data:
            for index in range(SAMPLES):
                data.seek(max(0, size - SAMPLE_BYTES) * index // (SAMPLES - 1))
                digest.update(data.read(SAMPLE_BYTES))
    return digest.hexdigest()
