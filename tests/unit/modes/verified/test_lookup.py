"""What followed the last time that a text ended like this."""

from __future__ import annotations

import numpy as np
import pytest

from river_vllm.modes.verified.lookup import continuation


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], 4, [4, 5, 1, 2]),
        ([1, 2, 3, 4, 5, 1, 2, 3], 1, [4]),
        ([1, 2, 3, 4, 5, 1, 2, 3], 0, []),
        ([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], 1, [8]),  # the last place, not the first
        ([9, 2, 3, 7, 8, 2, 3], 2, [7, 8]),  # two tokens, where three are nowhere
        ([1, 2, 3, 9, 5, 2, 3, 8, 1, 2, 3], 1, [9]),  # three before two
        ([6, 6, 6, 6], 3, [6]),
        ([1, 2, 3, 4], 3, []),
        ([1, 2], 3, []),
        ([], 3, []),
    ],
)
def test_continuation(text: list[int], most: int, expected: list[int]) -> None:
    assert continuation(np.array(text, dtype=np.int32), most) == expected
