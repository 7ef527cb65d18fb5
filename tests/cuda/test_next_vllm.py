"""River fits vLLM's source: the installed one, and those that a variable names.

``RIVER_VLLM_SOURCES`` lists folders or wheels, as for ``tools/check_vllm.py``, separated by colons.
Nothing of them is imported, so a wheel for GPUs will do.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from tools import check_vllm

OTHERS = filter(None, os.environ.get("RIVER_VLLM_SOURCES", "").split(":"))


@pytest.mark.parametrize("source", ["installed", *OTHERS])
def test_what_river_uses_of_vllm_is_there(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that the script cannot find there it could not look for in another vLLM either."""
    if source == "installed":
        origin = find_spec("vllm")
        assert origin is not None
        source = str(Path(str(origin.origin)).parents[1])
    status = check_vllm.main([source])
    lines = capsys.readouterr().out.splitlines()
    assert status == 0, lines
    assert int(lines[-1].split()[1]) > 50
