"""``river-vllm quantize``: the river's 4-bit weights by GPTQ, with a calibration text."""
