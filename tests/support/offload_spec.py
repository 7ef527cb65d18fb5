"""Offloading of K/V blocks that runs on the CPU: vLLM's own but for the copies.

vLLM's ``CPUOffloadingSpec`` has its keys, its bookkeeping and its eviction in the scheduler, and
copies with CUDA streams. Here the copies are plain ones.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec

OPTIONS: dict[str, Any] = {
    "kv_connector": "OffloadingConnector",
    "kv_role": "kv_both",
    "kv_connector_extra_config": {
        "spec_name": "PlainOffloadingSpec",
        "spec_module_path": "tests.support.offload_spec",
        "cpu_bytes_to_use": 64 << 20,
        "offload_prompt_only": False,
    },
}
"""``kv_transfer_config`` that offloads answers too."""


class PlainOffloadingSpec(CPUOffloadingSpec):
    """vLLM's, with copies in plain memory."""

    def get_worker(self, kv_caches: Any) -> OffloadingWorker:
        return PlainWorker(kv_caches, self.num_chunks)


class PlainWorker(OffloadingWorker):
    """Copies at once; a chunk is a block."""

    def __init__(self, kv_caches: Any, chunks: int) -> None:
        self._pairs = [
            (found.tensor, torch.empty(chunks, *found.tensor.shape[1:], dtype=found.tensor.dtype))
            for found in kv_caches.tensors
        ]
        self._finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._copy(job_id, src_spec, dst_spec, store=True)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._copy(job_id, dst_spec, src_spec, store=False)

    def _copy(self, job_id: int, engine: Any, kept: Any, store: bool) -> bool:
        ours, theirs = torch.from_numpy(engine.block_ids), torch.from_numpy(kept.block_ids)
        for cache, copy in self._pairs:
            if store:
                copy[theirs] = cache[ours]
            else:
                cache[ours] = copy[theirs]
        self._finished.append(TransferResult(job_id, True))
        return True

    def get_finished(self) -> list[TransferResult]:
        done, self._finished = self._finished, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        return
