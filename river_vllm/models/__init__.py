"""River-enabled model classes, made from vLLM's own on first use."""
