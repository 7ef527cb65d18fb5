"""The summary at a start, as the operations page shows it, has the rows that a server writes."""

from __future__ import annotations

import re

from river_vllm.config import RiverConfig
from server.http.summary import summary
from tests.docs.documents import blocks
from tests.unit.http.support import VERIFIED, river_state
from tests.unit.http.test_summary import ENGINE


def names(text: str) -> list[str]:
    return re.findall(r"^  (\w+) +", text, re.MULTILINE)


def test_the_operations_page_has_its_rows() -> None:
    (block,) = (b for b in blocks() if b.text.startswith("River is ready at") and "model" in b.text)
    state = river_state(engine=ENGINE, config=RiverConfig(verify=4), defaults=VERIFIED)
    assert names(block.text) == names(summary(state, "http://127.0.0.1:8000"))
