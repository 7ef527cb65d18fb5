"""The ``calibration`` block of a river config: how its settings were chosen and tested."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelRecord(_Part):
    """The identity of a checkpoint: the commit of a hub checkpoint, and the hashes of
    ``config.json`` and of the weight files (``fingerprint.py``)."""

    name: str
    revision: str | None = None
    config_sha256: str | None = None
    weights_sha256: str | None = None

    def proves(self, other: ModelRecord) -> bool:
        """Whether ``other`` is certainly the same checkpoint."""
        hashed = self.weights_sha256 is not None and other.weights_sha256 is not None
        names = ("weights_sha256" if hashed else "revision", "config_sha256")
        return all(getattr(self, name) == getattr(other, name) is not None for name in names)


class PromptsRecord(_Part):
    """The prompts.

    Attributes:
        source: names of their files.
        sha256: of the files; absent where the model made its own prompts.
        pilot: prompts from which the candidates were chosen.
        tested: other prompts, on which the chosen candidate was tested.
        longest: tokens of a prompt, at most; None in a file that does not say it.
        tokens: answer tokens of each, at most.
    """

    source: str
    sha256: str | None = None
    pilot: int = Field(ge=1)
    tested: int = Field(ge=1)
    longest: int | None = Field(default=None, ge=1)
    tokens: int = Field(ge=1)


class TargetRecord(_Part):
    """The least agreement with the backbone, and the probability with which the guarantee fails."""

    metric: Literal["agreement"] = "agreement"
    value: float
    delta: Share


class AchievedRecord(_Part):
    """Results of the chosen settings on the test's prompts."""

    agreement: float
    mean_exit_layer: float
    p_value: float


class DialRecord(_Part):
    """The settings that decide when a token leaves; these are chosen."""

    threshold: float
    min_layers: int


class Calibration(_Part):
    """The chosen settings, and everything that their guarantee depends on.

    Attributes:
        weights: the folder of the river's 4-bit weights, where they are not made at load.
        settings: the engine's, that the guarantee holds for (``config.calibrated_settings``).
        tested: other values that it depends on, as reported by the test's engine.
        guarantee: in words.
        date: of the test.
        river, vllm: versions.
    """

    model: ModelRecord
    weights: ModelRecord | None = None
    chosen: DialRecord
    settings: dict[str, Any]
    tested: dict[str, Any] = Field(default_factory=dict)
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
            dial: the engine's defaults for requests.
            model: the checkpoint that it serves.
            settings: its ``config.recorded_settings``.
        """
        found = []
        if dial != self.chosen:
            found.append("threshold or min_layers are not those that it chose")
        if not self.model.proves(model):
            found.append(
                f"the model is not known to be the calibrated '{self.model.name}': that takes the "
                "same hash of the weights, or the same commit and hash of the configuration"
            )
        known = {**self.settings, **self.tested}
        if unsaid := [name for name in settings if name not in known]:
            found.append(f"the file does not say what it was tested with: {', '.join(unsaid)}")
        found += [
            f"{name} = {value!r}, and it was tested with {known[name]!r}"
            for name, value in settings.items()
            if name in known and known[name] != value
        ]
        return found
