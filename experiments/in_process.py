"""Sets up vLLM inside this process, on all of its cores; import it before vLLM."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

ENGINE: dict[str, Any] = {
    "max_model_len": 1024,
    "max_num_seqs": 32,
    "kv_cache_memory_bytes": 1 << 29,
    "enable_prefix_caching": False,
    "disable_log_stats": True,
}
"""Settings shared by the compared engines."""
