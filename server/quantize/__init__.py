"""``river-vllm quantize``: 4-bit weights for the river, made with a calibration text."""
