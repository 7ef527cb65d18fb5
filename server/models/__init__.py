"""``river-vllm models``: which architectures River carries."""
