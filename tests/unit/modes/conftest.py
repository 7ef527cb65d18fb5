"""Shared by the tests of the rows of a step."""

from __future__ import annotations

import pytest

from tests.unit.modes.support import Batch


@pytest.fixture
def batch() -> Batch:
    """Of an engine in which each token leaves on its own."""
    return Batch()
