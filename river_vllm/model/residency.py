"""Which weights are in memory, and in pages of which size; pages that loading leaves behind."""

from __future__ import annotations

import ctypes
import gc
import mmap
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import safe_open

from river_vllm.compat import DefaultModelLoader, LinearBase, VllmConfig, get_model_loader
from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError
from river_vllm.model.linear import RiverLinearMethod

FETCHED = 2
"""Layers beyond the resident ones whose weights stay after they were read."""
WINDOW = 128 << 20
"""Bytes of a mapped checkpoint that may stay in memory after they were read."""

Tensors: TypeAlias = Iterable[tuple[str, torch.Tensor]]
"""Name and value of each."""

_LAYER = re.compile(r"^(?:model\.|language_model\.)*layers\.(\d+)\.")
"""A layer of the language model. An image encoder (``vision_tower.transformer.layers.0.…``) has
layers of its own, which nothing evicts."""

_MADV_DONTNEED = 4
_MADV_COLLAPSE = 25

LARGE = 16 << 20
"""Bytes of a mapping that may hold weights; the stack of a thread is smaller."""


class Residency:
    """Drops bf16 weights of layers that tokens hardly ever reach, and reads them again if asked to.

    Args:
        layers: the projections of each decoder layer.
        load: gives vLLM's model tensors of the checkpoint to load.
        read: the tensors of a layer, where layers are fetched.
    """

    def __init__(
        self,
        layers: Sequence[Sequence[LinearBase]],
        config: RiverConfig,
        load: Callable[[Tensors], object],
        read: Callable[[int], Tensors] | None = None,
    ) -> None:
        self.num_layers = len(layers)
        self._layers = layers
        self._load = load
        self._read = read
        self._deep = config.deep
        self._fetched: list[int] = []
        self._fetch_count = 0
        self.offloads = config.offloads(len(layers))
        """Whether some layers may be without backbone weights."""
        self.resident = len(layers)
        """Leading layers that hold their backbone weights."""
        if isinstance(config.resident_layers, int):
            self.resident = config.resident_layers
        self.limit = len(layers) if config.deep == "fetch" else self.resident
        """Backbone layers after which every row of a step leaves. Warm-up and dummy runs leave
        after the ``resident`` ones: they fetch nothing."""

    def need(self, index: int) -> None:
        """Read the backbone weights of layer ``index``, unless they are in memory.

        Raises ``RuntimeError`` if tokens should have left before this layer.
        """
        if index < self.resident:
            return
        if index in self._fetched:
            self._fetched.remove(index)
        else:
            if len(self._fetched) == FETCHED:
                for linear in self._layers[self._fetched.pop(0)]:
                    _method(linear).drop_backbone(linear)
            self._fetch(index)
        self._fetched.append(index)

    def info(self) -> dict[str, Any]:
        """The settings and memory in use, for operators."""
        methods = [_method(linear) for layer in self._layers for linear in layer]
        return {
            "resident_layers": self.resident,
            "backbone_bytes": sum(m.backbone_nbytes for m in methods if m.has_backbone),
            "deep": self._deep,
            "fetched_layers": sorted(self._fetched),
            "fetches": self._fetch_count,
        }

    def _fetch(self, index: int) -> None:
        if self._read is None:
            raise RuntimeError(f"layer {index} holds no backbone weights, and a row needs them")
        for linear in self._layers[index]:
            _method(linear).expect_backbone(linear)
        self._load(self._read(index))
        if not all(_method(linear).has_backbone for linear in self._layers[index]):
            raise RuntimeError(f"the checkpoint does not hold every weight of layer {index}")
        self._fetch_count += 1


def _method(linear: LinearBase) -> RiverLinearMethod:
    method: RiverLinearMethod = linear.quant_method
    return method


class CheckpointLayers:
    """Finds the tensors of each decoder layer in a checkpoint's files, by their headers.

    Raises:
        RiverError: a file is not safetensors, or a layer has no tensor.
    """

    def __init__(self, files: Sequence[str], num_layers: int) -> None:
        self._names: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for file in files:
            if not file.endswith(".safetensors"):
                raise RiverError(
                    f"'deep' = 'fetch' reads layers from safetensors files, not from "
                    f"'{Path(file).name}'"
                )
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    if found := _LAYER.search(name):
                        self._names[int(found[1])][file].append(name)
        missing = [layer for layer in range(num_layers) if layer not in self._names]
        if missing:
            raise RiverError(
                f"'deep' = 'fetch': the checkpoint has no tensors named 'layers.{missing[0]}.…'"
            )

    def tensors(self, layer: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and value of each tensor of ``layer``, mapped from the file while iterating."""
        for file, names in self._names[layer].items():
            with safe_open(file, framework="pt") as opened:
                for name in names:
                    yield name, opened.get_tensor(name)


def checkpoint_files(vllm_config: VllmConfig) -> list[str]:
    """The files from which vLLM loads the model's weights; a ``TypeError`` if it reads none."""
    loader = get_model_loader(vllm_config.load_config)
    if not isinstance(loader, DefaultModelLoader):
        raise TypeError(f"{type(loader).__name__} does not read checkpoint files")
    model = vllm_config.model_config
    _, files, _, _ = loader._prepare_weights(model.model, None, model.revision, False, None)
    return list(files)


def releasing(weights: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield ``weights``, and give the pages of earlier ones back to the system on the way.

    vLLM's loader maps the file and copies out of the mapping, so each page is in memory twice until
    the file is closed. A page that is given back too early is read again on access.
    """
    ranges: list[tuple[int, int]] = []
    before: list[tuple[int, int]] = []
    for name, tensor in weights:
        if tensor.device.type == "cpu":
            ranges.append((tensor.data_ptr(), tensor.nbytes))
        yield name, tensor
        del tensor
        if sum(size for _, size in ranges) > WINDOW:
            # The projection whose parts came last may still wait for another part.
            release(before + ranges)
            before, ranges = ranges, []
    release(before + ranges)


def release(ranges: Iterable[tuple[int, int]]) -> None:
    """Give back the pages of ``ranges`` (address, bytes) that map a file; others are left alone."""
    files = _file_mappings()
    madvise = ctypes.CDLL(None).madvise
    for address, size in ranges:
        first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and any(low <= first and last <= high for low, high in files):
            madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_DONTNEED)


def trim() -> None:
    """Return freed memory that the allocators of torch and glibc keep."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def move_to_huge_pages() -> None:
    """Have Linux move what this process has in memory to pages of 2 MiB (from Linux 6.1 on).

    A step reads every weight once, and with pages of 4 KiB it misses the TLB every 64 cache lines
    (docs/experiments/speed.md). oneDNN holds its form of the backbone's weights in memory that no
    tensor has the address of, so every large mapping is moved.
    """
    madvise = ctypes.CDLL(None).madvise
    for low, high in _mappings(lambda name: not name):
        if high - low >= LARGE:
            # It fails where nothing is in memory, and on an older system.
            madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), _MADV_COLLAPSE)


def _file_mappings() -> list[tuple[int, int]]:
    """Address ranges that map ``.safetensors`` files; a hub's cache names them by hash."""
    return _mappings(lambda name: name.endswith(".safetensors") or "/blobs/" in name)


def _mappings(wanted: Callable[[str], bool]) -> list[tuple[int, int]]:
    """Address ranges of this process by their file, whose name is empty for plain memory."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        addresses, _, _, _, _, *name = line.split(maxsplit=5)
        if wanted("".join(name)):
            low, high = addresses.split("-")
            found.append((int(low, 16), int(high, 16)))
    return found
