"""The two modes of a request: exits, and drafts that the backbone verifies.

Nothing outside this package asks which mode a request is in: it asks the mode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from river_vllm.modes.exit import ExitMode
from river_vllm.modes.verified import MARK, VerifiedMode

if TYPE_CHECKING:
    from river_vllm.modes.mode import Mode, Numbers
    from river_vllm.request import RiverSettings

_EXIT, _VERIFIED = ExitMode(), VerifiedMode()
MODES: tuple[Mode, ...] = (_EXIT, _VERIFIED)


def mode_of(settings: RiverSettings) -> Mode:
    """The mode that answers a request with these settings."""
    return _VERIFIED if settings.may_draft else _EXIT


def mode_that_made(numbers: Numbers) -> Mode:
    """The mode of the request whose tokens have these numbers, one or more."""
    return _VERIFIED if numbers[0] >= MARK else _EXIT
