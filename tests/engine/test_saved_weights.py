"""The 4-bit weights that one start saves are those of the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import engines
from tests.support.engines import generate, greedy
from tests.support.prompts import PROMPTS

pytestmark = pytest.mark.engine


# The session's: an engine that ends takes the process's distributed groups with it.
@pytest.fixture(scope="session")
def second_start(tiny_qwen2: Path, pinned_qwen2: Any) -> Any:
    return engines.river_engine(tiny_qwen2, engines.ONE_KERNEL)


def test_the_second_start_loads_them_and_computes_the_same(
    tiny_qwen2: Path, pinned_qwen2: Any, second_start: Any
) -> None:
    first, second = (e.collective_rpc("river_info")[0] for e in (pinned_qwen2, second_start))
    assert second["weights"]["made"] == 0
    # Four projections of six layers, and once more where kernels want other zero points.
    assert second["weights"]["loaded"] >= 24
    assert second["weights"]["folder"] == str(tiny_qwen2 / "river")
    assert second["kernels"] == first["kernels"]
    params = greedy(24, {"threshold": -1.0, "min_layers": 1}, logprobs=8)
    expected, found = (generate(e, PROMPTS[:4], params) for e in (pinned_qwen2, second_start))
    assert found == expected
