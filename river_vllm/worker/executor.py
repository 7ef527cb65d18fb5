"""The worker in the engine's own process, on one CPU (``distributed_executor_backend``).

vLLM puts a CPU worker into a process of its own, so that OpenMP starts with the right environment.
Every step then crosses that boundary and back, and while the worker computes, the engine's process
spins on a core that the worker wants. Thread count and cores can be set without an environment,
which is what this executor does.
"""

from __future__ import annotations

import os

import torch
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.executor.uniproc_executor import UniProcExecutor


class RiverCPUExecutor(UniProcExecutor):
    """vLLM's single-process executor, with the threads of its multi-process one."""

    def _init_executor(self) -> None:
        bound = OMPProcessManager(self.vllm_config).cpu_lists
        if bound:  # nothing with VLLM_CPU_OMP_THREADS_BIND=nobind
            torch.set_num_threads(len(bound[0]))
            os.sched_setaffinity(0, bound[0])
        super()._init_executor()
