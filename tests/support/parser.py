"""The parser of ``river-vllm serve``, which takes a second to build: once in a process."""

from __future__ import annotations

from functools import cache

from server.cli import serve

serve_parser = cache(serve.serve_parser)
