"""``river-vllm eval``: answers of an OpenAI-compatible endpoint, judged; and two of them, paired.

It runs beside the server, not inside it: nothing here imports torch or vLLM.
"""
