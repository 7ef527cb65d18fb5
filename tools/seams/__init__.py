"""What River stands on in vLLM, found by reading both and importing neither."""
