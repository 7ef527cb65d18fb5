"""River's own kernels for CPUs, called with tensors.

Two 4-bit products share one packed form, and are faster than bf16 for many rows too. ``bf16``
multiplies by the activations as they are. ``int8`` rounds them to 8 bits in each group, a second
approximation beside the 4-bit weights. It serves drafts, and exits with ``activations="int8"``. In
both, a row's result does not depend on the other rows.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Callable
from typing import TypeAlias

import torch

from river_vllm.kernels.base import Int4Kernel, LinearSpec, PackedLinear, not_for_cpu_bf16
from river_vllm.kernels.groups import GroupedWeight
from river_vllm.step.router import by_torch, transition_similarity

LANES = 16
"""Output features of a block."""
LINE = 8
"""Input features of a line."""
GROUPS = (32, 64, 128)

HUGE = 2 << 20
CHUNK = 64 << 20
"""Bytes that are mapped at a time; pages that are never written to take no memory."""
CACHE_LINE = 64

_POINTER, _SIZE, _THREADS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_PRODUCT = ctypes.CFUNCTYPE(None, *[_POINTER] * 4, _SIZE, _THREADS)
_Product: TypeAlias = Callable[..., None]

_BY_TORCH = by_torch(transition_similarity)


class Backend(ctypes.Structure):
    """``struct Backend`` of ``library.h``: one instruction set's kernels.

    ``int8`` and ``bf16`` are the 4-bit products.
    """

    _fields_ = (
        ("_name", ctypes.c_char_p),
        ("_runs", ctypes.CFUNCTYPE(ctypes.c_bool)),
        ("int8", _PRODUCT),
        ("bf16", _PRODUCT),
        ("_transition", ctypes.CFUNCTYPE(None, *[_POINTER] * 5, *[_SIZE] * 2, _THREADS)),
        ("_candidates", ctypes.CFUNCTYPE(None, *[_POINTER] * 4, *[_SIZE] * 4, _THREADS)),
        ("_dense", ctypes.CFUNCTYPE(None, *[_POINTER] * 4, *[_SIZE] * 3, _THREADS)),
    )
    int8: _Product
    bf16: _Product

    @property
    def name(self) -> str:
        """Its name in ``ORDER`` (``library.py``)."""
        return self._name.decode()

    @property
    def runs(self) -> bool:
        """Whether this CPU has its instructions."""
        return bool(self._runs())

    def transition(
        self, before: torch.Tensor | None, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A ``Reading`` of the cosine (``step/router.py``).

        A row's result does not depend on the other rows. States that are not bfloat16, such as some
        models' residual streams, are left to torch's operators.
        """
        others = hidden.dtype if residual is None else residual.dtype
        if hidden.dtype != torch.bfloat16 or others != torch.bfloat16:
            return _BY_TORCH(before, hidden, residual)
        hidden = hidden.contiguous()
        residual = None if residual is None else residual.contiguous()
        before = None if before is None else before.contiguous()
        rows, width = hidden.shape
        after = torch.empty(rows, width)
        similarity = None if before is None else torch.empty(rows)
        states = (_address(before), hidden.data_ptr(), _address(residual))
        results = (after.data_ptr(), _address(similarity))
        self._transition(*states, *results, rows, width, torch.get_num_threads())
        return after, similarity

    def candidates(
        self, x: torch.Tensor, weight: torch.Tensor, chosen: torch.Tensor
    ) -> torch.Tensor:
        """As ``some_outputs`` (``model/head.py``), summed in float32, without a copy of the chosen
        rows."""
        x, chosen = x.contiguous(), chosen.contiguous()
        if weight.stride(1) != 1:
            weight = weight.contiguous()
        y = x.new_empty(chosen.shape)
        values = (x.data_ptr(), weight.data_ptr(), chosen.data_ptr(), y.data_ptr())
        sizes = (*chosen.shape, x.shape[1], weight.stride(0))
        self._candidates(*values, *sizes, torch.get_num_threads())
        return y

    def dense(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """As ``F.linear``, summed in float32, over a few rows at once; torch takes each by itself.

        ``x [..., K]``, ``weight [N, K]``, contiguous ``bias [N]`` → ``[..., N]``."""
        x, weight = x.contiguous(), weight.contiguous()
        outputs, width = weight.shape
        y = x.new_empty(*x.shape[:-1], outputs)
        values = (x.data_ptr(), weight.data_ptr(), _address(bias), y.data_ptr())
        self._dense(*values, x.numel() // width, outputs, width, torch.get_num_threads())
        return y


class _Weight(ctypes.Structure):
    """``struct Weight`` of ``library.h``."""

    _fields_ = (
        *((name, _POINTER) for name in ("codes", "scales", "zeros")),
        *((name, _SIZE) for name in ("out_features", "in_features", "group")),
    )


class HugePages:
    """Packs tensors into chunks of memory; a chunk is freed with the last of its tensors.

    A step reads every weight once, from end to end. With pages of 4 KiB it misses the TLB every 64
    cache lines; with pages of 2 MiB the product is a sixth faster (docs/experiments/speed.md).
    """

    def __init__(self) -> None:
        self._chunk: mmap.mmap | None = None
        self._used = 0
        self._size = 0

    def hold(self, values: torch.Tensor) -> torch.Tensor:
        """A copy of ``values``, contiguous, on a cache line, in huge pages where there are any."""
        start = -(-self._used // CACHE_LINE) * CACHE_LINE
        if self._chunk is None or start + values.nbytes > self._size:
            self._size = max(CHUNK, -(-values.nbytes // HUGE) * HUGE)
            self._chunk = mmap.mmap(-1, self._size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(OSError):  # a kernel without huge pages
                self._chunk.madvise(mmap.MADV_HUGEPAGE)
            start = 0
        self._used = start + values.nbytes
        count = values.numel()
        held = torch.frombuffer(self._chunk, dtype=values.dtype, count=count, offset=start)
        return held.view(values.shape).copy_(values)


_PAGES = HugePages()


class NativeKernel(Int4Kernel):
    """``int8`` or ``bf16`` of the back end that ``find`` gives; None where there is none."""

    name = "native"
    integer_zeros = False

    def __init__(self, int8: bool, find: Callable[[], Backend | None]) -> None:
        self.rounds_activations = int8
        self._find = find

    def unsupported(self, spec: LinearSpec) -> str | None:
        reason = not_for_cpu_bf16(spec, LANES)
        if reason is None and spec.group_size not in GROUPS:
            reason = f"groups must be of {', '.join(map(str, GROUPS))}, not {spec.group_size}"
        if reason is None and self._find() is None:
            reason = "not built for this machine (see the warning in the log)"
        return reason

    def pack(self, weight: GroupedWeight, spec: LinearSpec) -> PackedLinear:
        backend = self._find()
        assert backend is not None
        product = backend.int8 if self.rounds_activations else backend.bf16
        return _NativePacked(weight, product, backend.int8)


class _NativePacked(PackedLinear):
    def __init__(self, weight: GroupedWeight, product: _Product, of_drafts: _Product) -> None:
        self._product = product
        self._of_drafts = of_drafts
        self._out_features, in_features = weight.codes.shape
        self._codes = _PAGES.hold(_pack_codes(weight.codes))
        self._scales = _PAGES.hold(_by_block(weight.scales))
        self._zeros = _PAGES.hold(_by_block(weight.zeros))
        held = (self._codes.data_ptr(), self._scales.data_ptr(), self._zeros.data_ptr())
        self._weight = _Weight(*held, self._out_features, in_features, weight.group_size)
        self._address = ctypes.addressof(self._weight)

    def apply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self._run(self._product, x, bias)

    def draft(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self._run(self._of_drafts, x, bias)

    def _run(self, product: _Product, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        x = x.contiguous()
        rows = x.shape[0]
        out = x.new_empty(rows, self._out_features)
        offsets = None if bias is None else bias.data_ptr()
        threads = torch.get_num_threads()
        product(self._address, x.data_ptr(), offsets, out.data_ptr(), rows, threads)
        return out

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes + self._scales.nbytes + self._zeros.nbytes


def _pack_codes(codes: torch.Tensor) -> torch.Tensor:
    """uint8 ``[N, K]`` of 0…15 → lines of 64 bytes, see ``library.h``."""
    out_features, in_features = codes.shape
    split = codes.view(out_features // LANES, LANES, in_features // LINE, 2, LINE // 2)
    low, high = split.unbind(dim=3)
    packed = (low | (high << 4)).permute(0, 2, 1, 3)
    return _in_pairs(packed.flatten(2))


def _by_block(values: torch.Tensor) -> torch.Tensor:
    """float ``[N, G]`` → bfloat16, the 16 of a block and a group together."""
    out_features, groups = values.shape
    blocks = values.view(out_features // LANES, LANES, groups).transpose(1, 2)
    return _in_pairs(blocks.to(torch.bfloat16))


def _in_pairs(blocks: torch.Tensor) -> torch.Tensor:
    """``[B, items, width]`` → flat: blocks are interleaved in pairs, item by item; an odd last one
    follows as it is."""
    even = len(blocks) // 2 * 2
    pairs = blocks[:even].unflatten(0, (-1, 2)).transpose(1, 2)
    return torch.cat([pairs.flatten(), blocks[even:].flatten()])


def _address(values: torch.Tensor | None) -> int | None:
    return None if values is None else values.data_ptr()
