"""Where the 4-bit weights come from, by the configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError
from river_vllm.folders import expanded
from river_vllm.models.architectures import PREFIX
from river_vllm.quantization import QUANTIZERS
from river_vllm.weights.cache import BESIDE, WeightCache, cache_folders
from river_vllm.weights.checkpoint import LARGEST, FromCheckpoint
from river_vllm.weights.source import QuantizedAtLoad


def weight_source(
    config: RiverConfig, model_config: Any, packed_modules: Mapping[str, Sequence[str]]
) -> QuantizedAtLoad:
    """The source of a model's 4-bit weights.

    Args:
        model_config: vLLM's, of the backbone.
        packed_modules: the model class's ``packed_modules_mapping``.

    Raises:
        RiverError: there are no such weights, or they are of another model or not what the
            configuration says.
    """
    model = model_config.model
    folder = weights_folder(config, model)
    cache = WeightCache(cache_folders(config.cache_dir, model))
    if folder is None:
        return QuantizedAtLoad(config.quantizer, config.group_size, cache)
    # With ``weights`` the setting only repeats what the folder says; the LM head has its own.
    group_size = config.group_size if config.weights is None else LARGEST
    architecture = model_config.architecture.removeprefix(PREFIX)
    source = FromCheckpoint(
        folder, architecture, model_config.hf_config, packed_modules, group_size, cache
    )
    for setting, stored in (("quantizer", source.quantizer), ("group_size", source.stored_group)):
        wanted = getattr(config, setting)
        if setting in config.model_fields_set and wanted != stored:
            raise RiverError(f"'{setting}' = {wanted!r}: the weights in '{folder}' have {stored!r}")
    return source


def weights_folder(config: RiverConfig, model: str) -> Path | None:
    """The 4-bit checkpoint to read; None where the weights are made at load.

    Raises:
        RiverError: GPTQ's weights have not been made.
    """
    if config.weights is not None:
        return expanded(config.weights)
    if config.quantizer in QUANTIZERS:
        return None
    places = gptq_folders(config, model)
    if (found := first_made(places)) is not None:
        return found
    looked = " or ".join(f"'{place}'" for place in places) or "any cache (it is off)"
    command = f"river-vllm quantize {model} --group-size {config.group_size} --prompts FILE"
    if config.cache_dir == "off":
        cure = f"'{command} --output DIR', and give --river-weights DIR"
    else:
        # It writes to the first place of "auto".
        cure = f"'{command}{'' if config.cache_dir == 'auto' else f' --output {places[0]}'}'"
    raise RiverError(
        f"no weights of quantizer '{config.quantizer}' in {looked}: make them with {cure}"
    )


def first_made(places: Sequence[Path]) -> Path | None:
    """The first of ``gptq_folders`` that holds weights: those that an engine reads."""
    # Path.is_file raises where a folder on the way may not be entered.
    made = (place for place in places if os.path.isfile(place / "config.json"))  # noqa: PTH113
    return next(made, None)


def gptq_folders(config: RiverConfig, model: str) -> list[Path]:
    """Where GPTQ's weights are looked for, and by default written."""
    # A folder has one name, whatever it is called by.
    name = str(Path(model).resolve()) if os.path.isdir(model) else model  # noqa: PTH112
    beside, own = Path(model) / BESIDE, name.strip("/").replace("/", "--")
    return [
        (folder if folder == beside else folder / own) / f"gptq-g{config.group_size}"
        for folder in cache_folders(config.cache_dir, model)
    ]
