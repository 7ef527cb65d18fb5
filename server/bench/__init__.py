"""``river-vllm bench``: interleaved comparison of two OpenAI-compatible endpoints.

It runs beside the servers, not inside them: nothing here imports torch or vLLM.
"""
