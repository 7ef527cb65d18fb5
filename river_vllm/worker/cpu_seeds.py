"""A seed and a prompt in chunks must not end the engine on the CPU.

vLLM samples in every step, and where a step ends within a prompt it takes the sample back by
setting the offset of the request's generator (``v1/worker/gpu_model_runner.py``,
``_bookkeeping_sync``; the comment in https://github.com/vllm-project/vllm/pull/10097 says that this
relies on CUDA). A CPU generator has no offset: the worker raises, and one request with a ``seed``
and a long prompt takes everybody's down with the engine.

To be removed once stock vLLM answers such a request on the CPU; ``tests/reliability/test_stock.py``
fails then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


class SeededChunksMixin:
    """Goes before vLLM's CPU runner (V1)."""

    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        with unfinished_prompts_unseeded(self):
            return super().sample_tokens(*args, **kwargs)  # type: ignore[misc]


@contextmanager
def unfinished_prompts_unseeded(runner: Any) -> Iterator[None]:
    """Rows whose sample is thrown away draw from the common generator, not from their own.

    Args:
        runner: its batch's ``generators``, row → generator, are what the sampler reads.
    """
    batch = runner.input_batch
    discarded = np.flatnonzero(runner.discard_request_mask.np[: batch.num_reqs])
    held = {row: batch.generators.pop(row) for row in discarded.tolist() if row in batch.generators}
    try:
        yield
    finally:
        batch.generators.update(held)
