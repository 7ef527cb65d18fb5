"""``river-vllm calibrate``: the command around ``river_vllm.calibrate``."""
