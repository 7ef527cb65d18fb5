"""vLLM's own server, patched to read back its compiled forward (``river_vllm/patches.py``), for a
fair comparison of starts. It takes the options of vLLM's server.

The patch is applied at import: the processes that vLLM spawns import this module again.
"""

from __future__ import annotations

import runpy

from river_vllm.patches import compiled_forwards_are_read_back

compiled_forwards_are_read_back(lambda vllm_config: True)

if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
