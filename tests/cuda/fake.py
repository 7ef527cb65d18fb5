"""Tensors on a device that is not there: their shapes, and waits of the host for it.

The device is torch's ``meta``: a torch without CUDA indexes no tensor on ``cuda``, not even a fake.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

_ITEM = torch.ops.aten._local_scalar_dense.default
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


GPU = torch.device("meta")


class Waits(TorchDispatchMode):
    """Counts waits of the host: a value that it reads, and a copy to or from the device.

    torch waits for a copy from memory that is not pinned, too.
    """

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _ITEM:
            self.count += args[0].device == GPU
            return args[0].dtype == torch.bool or 0
        out = func(*args, **kwargs)
        if func in _COPIES:
            source = args[-1] if func is _COPIES[1] else args[0]
            self.count += (source.device == GPU) != (out.device == GPU)
        return out


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """Inside, tensors on ``GPU`` have no values; operators on two devices at once raise. What is
    read of them is 0, or true."""
    waits = Waits()

    def read(tensor: Any) -> Any:
        waits.count += tensor.device == GPU
        return np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))

    monkeypatch.setattr(FakeTensor, "numpy", read, raising=False)
    monkeypatch.setattr(FakeTensor, "tolist", lambda tensor: read(tensor).tolist(), raising=False)
    with FakeTensorMode(allow_non_fake_inputs=True), waits:
        yield waits
