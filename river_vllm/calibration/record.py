"""The ``calibration`` block of a ``river_config``: what the settings were chosen from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelRecord(_Part):
    """Which checkpoint."""

    name: str
    revision: str | None = None
    """Commit of a hub checkpoint."""
    config_sha256: str | None = None
    weights_sha256: str | None = None
    """Of the weight files' names, sizes and samples of their bytes (``fingerprint.py``)."""


class PromptsRecord(_Part):
    """Which texts."""

    source: str
    sha256: str | None = None
    """Of the file; absent where the model made its own prompts."""
    pilot: int = Field(ge=1)
    """Prompts from which the candidates were chosen."""
    tested: int = Field(ge=1)
    """Other prompts, on which the chosen candidate was tested."""
    tokens: int = Field(ge=1)
    """Answer tokens of each, at most."""


class TargetRecord(_Part):
    """What was asked for."""

    metric: Literal["agreement", "kl", "depth"]
    value: float
    delta: Share


class AchievedRecord(_Part):
    """What the chosen settings gave on the tested prompts."""

    agreement: float
    kl: float
    mean_exit_layer: float
    p_value: float


class DialRecord(_Part):
    """What was chosen."""

    threshold: float
    min_layers: int
    layer_offsets: Annotated[tuple[float, ...], Field(strict=False)] | None = None


class Calibration(_Part):
    """Everything that the settings rest on."""

    model: ModelRecord
    weights: ModelRecord | None = None
    """The folder with the river's own weights, where they are not made from the model's at load."""
    chosen: DialRecord
    settings: dict[str, Any]
    """The settings that change what a token's river computes; the calibration holds for these."""
    prompts: PromptsRecord
    target: TargetRecord
    achieved: AchievedRecord
    guarantee: str
    date: str
    river: str
    vllm: str


MATTERS = (
    "prefill",
    "scope",
    "signal",
    "quantizer",
    "weights",
    "group_size",
    "activations",
    "lm_head",
    "lm_head_candidates",
)
"""Settings that change what a token's river computes or who takes it; the dial apart. A new setting
that does so belongs here."""
