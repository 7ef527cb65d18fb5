"""``river-vllm eval``: lm-evaluation-harness on two sides, and what changes between them."""
