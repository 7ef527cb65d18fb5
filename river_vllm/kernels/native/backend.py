"""One instruction set's kernels, called with tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

from river_vllm.step.router import by_torch, transition_similarity

_POINTER, _SIZE, _THREADS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_PRODUCT = ctypes.CFUNCTYPE(None, *[_POINTER] * 4, _SIZE, _THREADS)
_TRANSITION = ctypes.CFUNCTYPE(None, *[_POINTER] * 5, _SIZE, _SIZE, _THREADS)
_CANDIDATES = ctypes.CFUNCTYPE(None, *[_POINTER] * 4, *[_SIZE] * 4, _THREADS)
_DENSE = ctypes.CFUNCTYPE(None, *[_POINTER] * 4, *[_SIZE] * 3, _THREADS)

_BY_TORCH = by_torch(transition_similarity)


class Backend(ctypes.Structure):
    """``struct Backend`` of ``library.h``. ``int8`` and ``bf16`` are the 4-bit products
    (``kernel.py``)."""

    _fields_ = (
        ("_name", ctypes.c_char_p),
        ("_runs", ctypes.CFUNCTYPE(ctypes.c_bool)),
        ("int8", _PRODUCT),
        ("bf16", _PRODUCT),
        ("_transition", _TRANSITION),
        ("_candidates", _CANDIDATES),
        ("_dense", _DENSE),
    )
    int8: Callable[..., None]
    bf16: Callable[..., None]

    @property
    def name(self) -> str:
        """Its name in ``ORDER`` (``library.py``)."""
        name: bytes = self._name
        return name.decode()

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
        self._transition(
            _address(before),
            hidden.data_ptr(),
            _address(residual),
            after.data_ptr(),
            _address(similarity),
            rows,
            width,
            torch.get_num_threads(),
        )
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
        self._candidates(
            x.data_ptr(),
            weight.data_ptr(),
            chosen.data_ptr(),
            y.data_ptr(),
            *chosen.shape,
            x.shape[1],
            weight.stride(0),
            torch.get_num_threads(),
        )
        return y

    def dense(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """As ``F.linear``, summed in float32, over a few rows at once; torch takes each by itself.

        ``x [..., K]``, ``weight [N, K]``, contiguous ``bias [N]`` → ``[..., N]``."""
        x, weight = x.contiguous(), weight.contiguous()
        outputs, width = weight.shape
        y = x.new_empty(*x.shape[:-1], outputs)
        self._dense(
            x.data_ptr(),
            weight.data_ptr(),
            _address(bias),
            y.data_ptr(),
            x.numel() // width,
            outputs,
            width,
            torch.get_num_threads(),
        )
        return y


def _address(values: torch.Tensor | None) -> int | None:
    return None if values is None else values.data_ptr()
