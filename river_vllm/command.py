"""The ``river-vllm`` command, as it is installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path


def main() -> int:
    """Run the command; stop with an error if Python finds another package named ``server``."""
    found = find_spec("server")
    places = list(found.submodule_search_locations or [found.origin or ""]) if found else []
    if not any(Path(place, "http", "middleware.py").exists() for place in places):
        where = ", ".join(map(str, places)) or "nowhere"
        print(
            f"river-vllm: error: the package 'server' that Python finds ({where}) is not River's: "
            "start from another folder, or take that one out of PYTHONPATH",
            file=sys.stderr,
        )
        return 2
    from server.cli.main import main as run

    return run()
