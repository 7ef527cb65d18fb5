"""The ``calibration`` block of a ``river_config``: what the settings were chosen from."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Of its ``config.json``."""
    weights_sha256: str | None = None
    """Of the weight files' names, sizes and samples of their bytes (``fingerprint.py``)."""

    def proves(self, other: ModelRecord) -> bool:
        """Whether ``other`` is the same checkpoint for certain."""
        if self.weights_sha256 is not None and other.weights_sha256 is not None:
            names: tuple[str, ...] = ("weights_sha256", "config_sha256")
        else:
            names = ("revision", "config_sha256")
        return all(
            getattr(self, name) is not None and getattr(self, name) == getattr(other, name)
            for name in names
        )


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
    tested: dict[str, Any] = Field(default_factory=dict)
    """What else the test depended on, as its engine reported it (``REPORTED``)."""
    prompts: PromptsRecord
    target: TargetRecord
    achieved: AchievedRecord
    guarantee: str
    date: str
    river: str
    vllm: str

    def doubts(
        self, dial: DialRecord, model: ModelRecord, settings: Mapping[str, Any]
    ) -> list[str]:
        """Why the guarantee does not cover an engine; empty where it is in force.

        Args:
            dial: what the engine's requests take by default.
            model: the checkpoint that it serves.
            settings: its ``recorded_settings``.
        """
        found = []
        if dial != self.chosen:
            found.append("threshold, min_layers or layer offsets are not those that it chose")
        if not self.model.proves(model):
            found.append(
                f"the model is not known to be the calibrated '{self.model.name}': that takes the "
                "same hash of the weights, or the same commit and hash of the configuration"
            )
        known = {**self.settings, **self.tested}
        unsaid = [name for name in settings if name not in known]
        if unsaid:
            found.append(f"the file does not say what it was tested with: {', '.join(unsaid)}")
        found += [
            f"{name} = {value!r}, and it was tested with {known[name]!r}"
            for name, value in settings.items()
            if name in known and known[name] != value
        ]
        return found


MATTERS = (
    "prefill",
    "scope",
    "criterion",
    "quantizer",
    "weights",
    "group_size",
    "activations",
    "lm_head",
    "lm_head_candidates",
)
"""Settings that change what a token's river computes or who takes it; the dial apart. A new setting
that does so belongs here."""

REPORTED = ("zero_points", "dtype", "kv_cache_dtype")
"""What an engine reports beyond its settings that changes the same; with ``max_rows``."""


def recorded_settings(config: BaseModel, engine: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a guarantee depends on beside the dial, the model and the river's weights,
    the same at a test and at a server.

    Args:
        config: the engine's ``RiverConfig``.
        engine: what its worker reports (``river_info``).
    """
    # A folder's name says nothing; its weights are known by their hash.
    found = config.model_dump(mode="json", include=set(MATTERS) - {"weights"})
    found |= {name: engine[name] for name in REPORTED}
    limit = engine["crossover"]["max_rows"]
    found["max_rows"] = "all" if limit is None else limit
    if found.get("activations") == "int8":
        # Each kernel rounds activations in its own way.
        found["kernels"] = engine["kernels"]
    return found
