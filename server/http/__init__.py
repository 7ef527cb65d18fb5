"""River's additions to vLLM's OpenAI app."""
