"""The two modes of a river: exits, and drafts that the backbone verifies.

Nothing outside this package asks which mode an engine or a request is in: it asks the mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from river_vllm.modes.exit import ExitMode
from river_vllm.modes.verified import VerifiedMode
from river_vllm.request import RiverSettings, given_settings

if TYPE_CHECKING:
    from river_vllm.config import RiverConfig
    from river_vllm.modes.mode import Mode

MODES: dict[str, Mode] = {mode.name: mode for mode in (ExitMode(), VerifiedMode())}


def mode_of(config: RiverConfig) -> Mode:
    """The mode that an engine's settings ask for."""
    return MODES["verified" if config.verify else "exit"]


def default_settings(config: RiverConfig) -> RiverSettings:
    """What holds for a request that says nothing."""
    return mode_of(config).defaults(config)


def settings_of(extra_args: Mapping[str, Any] | None, defaults: RiverSettings) -> RiverSettings:
    """The settings of a request as a worker follows them.

    Args:
        extra_args: of its ``SamplingParams``.
        defaults: the engine's.
    """
    return MODES[defaults.mode].settled(given_settings(extra_args, defaults), defaults)
