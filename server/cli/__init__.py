"""The ``river-vllm`` command."""
