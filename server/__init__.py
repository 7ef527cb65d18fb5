"""River's HTTP side and command line: vLLM's own OpenAI server with the river added."""
