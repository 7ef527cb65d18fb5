"""vLLM's own server with one patch, for a fair comparison of starts: it too reads back what it has
compiled (``river_vllm/patches.py``). Takes the options of vLLM's server.

The patch is applied at import: vLLM spawns its engine and workers, and each imports this again.
"""

from __future__ import annotations

import runpy

from river_vllm.patches import read_compiled_forwards

read_compiled_forwards(lambda vllm_config: True)

if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
