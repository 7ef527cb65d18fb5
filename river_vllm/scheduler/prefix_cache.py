"""Approximate K/V stays with the requests that allow it.

vLLM finds reusable blocks by a hash over their tokens (``v1/core/kv_cache_utils.py``). Blocks that
the river may have written get a hash of their own kind: only a request with the same settings
computes it. Prompt blocks come from the backbone and stay shared by all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from river_vllm import patches
from river_vllm.config import RiverConfig
from river_vllm.request import RiverSettings

ELSEWHERE = {"threshold", "min_layers", "layer_offsets", "calibration", "cache_dir"}
"""Settings that a request brings, and those that change nothing of what the river computes."""


def isolate(
    request: Any, settings: RiverSettings, config: RiverConfig, hash_block_size: int
) -> None:
    """Salt the block hashes of ``request`` from the first block that an exit may touch.

    Args:
        request: vLLM's scheduler request, not scheduled yet.
        hash_block_size: tokens per hash.
    """
    if not settings.may_exit or request._block_hasher is None:
        return
    salt = f"river:{settings.threshold!r}:{settings.min_layers}"
    # All of it: a connector's store may be shared with an engine whose river is another one.
    salt += f":{config.model_dump_json(exclude=ELSEWHERE)}"
    if settings.layer_offsets is not None:
        salt += f":{settings.layer_offsets!r}"
    exact_tokens = request.num_prompt_tokens if config.prefill == "backbone" else 0
    salted = SaltedHasher(request._block_hasher, salt.encode(), exact_tokens // hash_block_size)
    patches.block_hashes_come_from(request, salted)


class SaltedHasher:
    """A request's block hasher whose hashes differ from block ``exact_blocks`` on.

    Holds no reference to the request (vLLM relies on reference counting to free it).
    """

    def __init__(self, inner: Callable[[Any], list[bytes]], salt: bytes, exact_blocks: int) -> None:
        self._inner = inner
        self._salt = salt
        self._exact_blocks = exact_blocks
        self._plain: list[bytes] = []

    def __call__(self, request: Any) -> list[bytes]:
        salted = request.block_hashes
        done = len(salted)
        # vLLM chains a block's hash on the one before: on the plain one, so that a block's hash
        # does not depend on how many tokens arrived at once.
        del self._plain[done:]
        request.block_hashes = self._plain
        try:
            new = self._inner(request)
        finally:
            request.block_hashes = salted
        self._plain.extend(new)
        return [
            self._salted(value) if done + i >= self._exact_blocks else value
            for i, value in enumerate(new)
        ]

    def _salted(self, value: bytes) -> bytes:
        return hashlib.sha256(self._salt + value).digest()[: len(value)]
