"""What River adds to vLLM's OpenAI app, and nothing that vLLM has already."""
