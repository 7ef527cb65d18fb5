"""Which settings choose a mode, and which go with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from river_vllm.config import RiverConfig

EXIT_FIELDS = (
    *("threshold", "layer_offsets", "prefill", "scope", "criterion", "max_rows", "calibration"),
    *("resident_layers", "deep"),
)
"""Settings of the exit decision; in verified mode there is none, and every layer is run."""


def check(config: RiverConfig) -> None:
    """Whether the settings are of one mode.

    Raises:
        ValueError: names those that are not.
    """
    beside = [name for name in EXIT_FIELDS if name in config.model_fields_set]
    if config.verify and beside:
        raise ValueError(f"verify = {config.verify} cannot be combined with {', '.join(beside)}")
    if not config.verify and config.draft == "fixed":
        raise ValueError("draft must be 'adaptive' where verify is 0")


def kept(config: RiverConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Of the settings of ``config`` those that stay when ``changes`` come on top: where they choose
    verified mode, what was set for exits goes."""
    below = config.model_dump(exclude_unset=True)
    if changes.get("verify") and not config.verify:
        for name in (*EXIT_FIELDS, "min_layers"):
            below.pop(name, None)
    return below


def wants_head(config: RiverConfig) -> bool:
    """Whether the LM head is to have a 4-bit twin, where the model allows it: for drafts it has one
    unless the operator says otherwise."""
    return config.lm_head == "river" or (
        config.verify > 0 and "lm_head" not in config.model_fields_set
    )
