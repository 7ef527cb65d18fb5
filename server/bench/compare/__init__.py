"""``river-vllm bench compare A B``: the same prompts to two endpoints, in turn."""
