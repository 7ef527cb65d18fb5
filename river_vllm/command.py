"""The ``river-vllm`` command, as it is installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> int:
    """Run it; where another package named ``server`` is found before River's, say so and stop."""
    found = find_spec("server")
    if found is None or find_spec("server.cli") is None:
        where = (
            "nowhere" if found is None else found.origin or str(found.submodule_search_locations)
        )
        print(
            f"river-vllm: error: the package 'server' that Python finds ({where}) is not River's: "
            "start from another folder, or take that one out of PYTHONPATH",
            file=sys.stderr,
        )
        return 2
    from server.cli.main import main as run

    return run()
