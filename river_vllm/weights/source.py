"""Sources of a projection's 4-bit groups: made at load, saved and found again, or read."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from math import gcd
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import nn

from river_vllm.compat import LinearBase
from river_vllm.config import PREFIX, RiverConfig
from river_vllm.errors import RiverError
from river_vllm.host import Stage, mark
from river_vllm.kernels import groups
from river_vllm.kernels.groups import GroupedWeight
from river_vllm.weights.cache import WeightCache, cache_folders, weights_folder
from river_vllm.weights.formats import CheckpointFolder, format_of
from river_vllm.weights.packed import FORMAT, digest
from river_vllm.weights.quantizers import QUANTIZERS, fitting_group_size
from river_vllm.weights.shards import Part, assemble, parts_of

DATA_FREE = "hqq"
"""Quantiser of the LM head, which a 4-bit checkpoint does not have."""
LARGEST = 128
"""Input features of the largest group that every kernel takes; larger ones are split."""
TOLERANCE = 0.35
"""Largest accepted relative error; 4 bits make 0.05 to 0.2, another model's weight about 1."""
SAMPLE = 512
"""Outputs that are compared with the backbone's."""
SAME = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def weight_source(
    config: RiverConfig, model_config: Any, packed_modules: Mapping[str, Sequence[str]]
) -> QuantizedAtLoad:
    """The source of a model's 4-bit weights.

    Args:
        model_config: vLLM's, of the backbone.
        packed_modules: the model class's ``packed_modules_mapping``.

    Raises:
        RiverError: there are no such weights, or they do not fit the model or the configuration.
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


class QuantizedAtLoad:
    """Groups made from the weight alone, or found where an earlier start has saved them.

    Args:
        quantizer: one of ``QUANTIZERS``.
        group_size: the largest group wanted.
        cache: where made groups are kept.
    """

    integer_zeros = True
    """Whether the source can give integer zero points."""

    def __init__(self, quantizer: str, group_size: int, cache: WeightCache) -> None:
        self.quantizer = quantizer
        """The name of the quantiser that made the groups."""
        self._quantize = QUANTIZERS[quantizer]
        self._group_size = group_size
        self._cache = cache
        self._made = self._loaded = 0
        # Part of the key: a quantiser whose code has changed makes its weights again.
        modules = (groups, sys.modules[self._quantize.__module__])
        self._code = blake3("".join(map(inspect.getsource, modules)).encode()).hexdigest()

    def group_size(self, layer: nn.Module, in_features: int) -> int:
        """Input features of ``layer`` that share a scale."""
        return fitting_group_size(in_features, self._group_size)

    def groups(
        self, layer: nn.Module, weight: torch.Tensor, group_size: int, integer_zeros: bool
    ) -> GroupedWeight:
        """The groups of ``weight`` ``[N, K]``, this rank's shard of ``layer``."""
        key = self._key(weight, group_size, integer_zeros)
        found = self._cache.get(key)
        if found is not None and _fits(found, weight, group_size):
            self._loaded += 1
            return found
        if not self._made:
            mark(Stage.QUANTIZE)
        made = self._quantize(weight, group_size, integer_zeros=integer_zeros)
        self._made += 1
        self._cache.put(key, made)
        return made

    def report(self) -> dict[str, Any]:
        """How many weights were made, how many read, and from which folder, for ``GET /river``."""
        place = self._cache.found_in if self._loaded else self._cache.writes_to
        return {
            "made": self._made,
            "loaded": self._loaded,
            "folder": None if place is None else str(place),
        }

    def summary(self) -> str:
        """The same in a few words, for the log."""
        place = self.report()["folder"]
        if not self._loaded:
            return "made" if place is None else f"made and saved in '{place}'"
        return f"loaded from '{place}'" + (f" ({self._made} made)" if self._made else "")

    def _key(self, weight: torch.Tensor, group_size: int, integer_zeros: bool) -> str:
        parts = [FORMAT, self._code, group_size, integer_zeros, digest(weight)]
        return blake3(json.dumps(parts).encode()).hexdigest()


class FromCheckpoint(QuantizedAtLoad):
    """Reads projections from compressed-tensors and River's own 4-bit checkpoints.

    Args:
        folder: of the checkpoint.
        architecture: the backbone's.
        hf_config: the backbone's configuration, as Hugging Face has it.
        packed_modules: the model's ``packed_modules_mapping``.
        group_size: the largest wanted for the LM head, which is quantised at load.
        cache: where its groups are kept.

    Raises:
        RiverError: the checkpoint cannot be read or is of another model.
    """

    def __init__(
        self,
        folder: Path,
        architecture: str,
        hf_config: Any,
        packed_modules: Mapping[str, Sequence[str]],
        group_size: int,
        cache: WeightCache,
    ) -> None:
        super().__init__(DATA_FREE, group_size, cache)
        self._folder = CheckpointFolder(folder)
        self._format = format_of(self._folder)
        self._packed_modules = packed_modules
        # Names, not counts: a projection may be read more than once.
        self._read: set[str] = set()
        self.quantizer = self._format.name
        self.stored_group = self._format.group_size
        self.integer_zeros = self._format.integer_zeros
        self._check_model(architecture, hf_config)
        if self._format.group_size != -1 and self._format.group_size % 32:
            raise RiverError(
                f"'{folder}': groups of {self._format.group_size} (allowed: multiples of 32)"
            )

    def group_size(self, layer: nn.Module, in_features: int) -> int:
        """The checkpoint's group size; smaller where the layer's width or the kernels need it."""
        if not isinstance(layer, LinearBase):
            return super().group_size(layer, in_features)
        stored = self._format.group_size
        # Groups are split, so one that fits divides the stored one.
        return fitting_group_size(in_features, LARGEST if stored == -1 else gcd(stored, LARGEST))

    def groups(
        self, layer: Any, weight: torch.Tensor, group_size: int, integer_zeros: bool
    ) -> GroupedWeight:
        if not isinstance(layer, LinearBase):
            return super().groups(layer, weight, group_size, integer_zeros)
        parts = parts_of(layer, self._packed_modules)
        read = [(part, self._part(part, group_size)) for part in parts]
        whole = assemble(layer, read, group_size)
        if not (error := difference(whole, weight)) <= TOLERANCE:
            raise RiverError(
                f"'{self._folder.folder}', '{layer.prefix}': differs by {error:.0%} from the "
                "backbone's weight: it was made from another model, or its inputs are scaled, as "
                "AWQ's are"
            )
        self._read.add(layer.prefix)
        return whole

    def report(self) -> dict[str, Any]:
        return {
            "made": self._made,
            "loaded": len(self._read) + self._loaded,
            "folder": str(self._folder.folder),
        }

    def summary(self) -> str:
        return f"read from '{self._folder.folder}'"

    def _part(self, part: Part, group_size: int) -> GroupedWeight:
        weight = self._format.read(self._folder, part.name)
        shape = tuple(weight.codes.shape)
        if shape != part.shape:
            raise RiverError(
                f"'{self._folder.folder}': '{part.name}' is {shape[0]} x {shape[1]}, "
                f"the backbone's {part.shape[0]} x {part.shape[1]}"
            )
        if weight.group_size % group_size:
            raise RiverError(
                f"'{self._folder.folder}': '{part.name}' has groups of {weight.group_size}, "
                f"not of {group_size}"
            )
        return weight.regrouped(group_size)

    def _check_model(self, architecture: str, hf_config: Any) -> None:
        ours = {"architecture": architecture} | {n: getattr(hf_config, n, None) for n in SAME}
        theirs = self._folder.config
        found = {"architecture": (theirs.get("architectures") or [None])[0]}
        found |= {name: theirs.get(name, ours[name]) for name in SAME}
        for name, value in ours.items():
            if found[name] != value:
                raise RiverError(
                    f"'{self._folder.folder}' is of another model: {name} = {found[name]!r}, "
                    f"the backbone has {value!r}"
                )


def difference(weight: GroupedWeight, backbone: torch.Tensor) -> float:
    """The norm of a sample's difference from the backbone's weight, relative to that weight's."""
    rows = slice(None, None, -(-len(backbone) // SAMPLE))
    theirs = backbone[rows].float()
    ours = weight.rows(rows).dequantize()
    return float((ours - theirs).norm()) / (float(theirs.norm()) or 1.0)


def _fits(found: GroupedWeight, weight: torch.Tensor, group_size: int) -> bool:
    """Whether a saved weight has this size: a checkpoint's folder may hold others."""
    return found.codes.shape == weight.shape and found.group_size == group_size
