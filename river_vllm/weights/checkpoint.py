"""4-bit groups read from another checkpoint of the same model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from pathlib import Path
from typing import Any

import torch
from torch import nn

from river_vllm.compat import LinearBase
from river_vllm.errors import RiverError
from river_vllm.quantization import fitting_group_size
from river_vllm.quantization.groups import GroupedWeight
from river_vllm.weights.cache import WeightCache
from river_vllm.weights.equalize import matched
from river_vllm.weights.formats import format_of
from river_vllm.weights.shards import Part, assemble, parts_of
from river_vllm.weights.source import QuantizedAtLoad
from river_vllm.weights.tensors import CheckpointFolder

DATA_FREE = "hqq"
"""Quantises what the checkpoint does not have: the LM head."""
LARGEST = 128
"""Input features of the largest group that every kernel takes; larger ones are split."""
SAME = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


class FromCheckpoint(QuantizedAtLoad):
    """Reads projections from compressed-tensors, AWQ, GPTQ and River's own 4-bit checkpoints.

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
        self._scaled: set[str] = set()
        self.quantizer = self._format.name
        self.stored_group = self._format.group_size
        self.integer_zeros = self._format.integer_zeros
        self._check_model(architecture, hf_config)
        if self._format.group_size != -1 and self._format.group_size % 32:
            raise RiverError(
                f"'{folder}': groups of {self._format.group_size} (allowed: multiples of 32)"
            )

    def group_size(self, layer: nn.Module, in_features: int) -> int:
        """The checkpoint's; smaller where the layer's width or the kernels need it."""
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
        try:
            whole = matched(whole, weight)
        except RiverError as error:
            raise RiverError(f"'{self._folder.folder}', '{layer.prefix}': {error}") from None
        self._read.add(layer.prefix)
        if whole.input_scales is not None:
            self._scaled.add(layer.prefix)
        return whole

    def report(self) -> dict[str, Any]:
        return {
            "made": self._made,
            "loaded": len(self._read) + self._loaded,
            "scaled_inputs": len(self._scaled),
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
