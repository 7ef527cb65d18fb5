"""``river-vllm bench``: a load-testing client for any OpenAI-compatible endpoint.

It runs beside the server, not inside it: nothing here imports torch or vLLM.
"""
