"""A request's ``river`` field, its settings and its sampling parameters.

The front end resolves a request's ``river`` field against the defaults when the request
arrives and stores the result in ``SamplingParams.extra_args``; the worker reads it there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError

ModeName = Literal["exit", "verified"]

EXTRA_ARGS_KEY = "river"
"""River's key in ``SamplingParams.extra_args``."""

EXIT_FIELDS = ("threshold", "min_layers")
"""Fields that apply to exits only."""


class RiverField(BaseModel):
    """The ``river`` field of a generating endpoint's body; omitted fields take the defaults."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    enabled: bool = Field(
        default=True, description="false: this request runs on the backbone alone"
    )
    threshold: float | None = Field(
        default=None,
        ge=-1.0,
        le=1.0,
        description="exit once the similarity is above it; 1.0 never exits",
    )
    min_layers: int | None = Field(
        default=None, ge=1, description="backbone layers that every token of this request runs"
    )
    trace: bool = Field(
        default=False,
        description="return the exit layer of each generated token, or whether it was drafted",
    )
    mode: ModeName | None = Field(
        default=None,
        description="'exit', which a threshold or min_layers implies, or 'verified', where the "
        "server drafts; without it the server's default",
    )


@dataclass(frozen=True, slots=True)
class RiverSettings:
    """A request's resolved settings.

    Attributes:
        enabled: False: the backbone alone.
        threshold, min_layers: of exits.
        mode: the mode that answers it, if ``enabled``.
    """

    enabled: bool
    threshold: float
    min_layers: int
    mode: ModeName = "exit"

    @property
    def may_exit(self) -> bool:
        """Whether any token of the request can leave the backbone."""
        return self.enabled and self.mode == "exit" and self.threshold < 1.0

    @property
    def may_draft(self) -> bool:
        """Whether the river drafts for the request."""
        return self.enabled and self.mode == "verified"

    @property
    def answered_by(self) -> str:
        """The name of the mode in a response."""
        return self.mode if self.enabled else "backbone"

    def as_extra_arg(self) -> dict[str, Any]:
        """The value in ``extra_args`` from which ``settings_of`` restores these settings."""
        return asdict(self)


def default_settings(config: RiverConfig) -> RiverSettings:
    """The settings of a request without a ``river`` field."""
    mode: ModeName = "verified" if config.drafts else "exit"
    return RiverSettings(True, config.default_threshold, config.min_layers, mode)


class UnreachableError(RiverError):
    """A request has a setting that the engine cannot serve.

    Args:
        field: the name of that setting.
        value: as the message shows it.
        reason: the allowed values, and why.
    """

    def __init__(self, field: str, value: object, reason: str) -> None:
        super().__init__(f"'{field}' = {value}: {reason}")
        self.field = field


def unreachable(
    settings: RiverSettings, config: RiverConfig, num_layers: int
) -> UnreachableError | None:
    """Why an engine cannot serve ``settings``; None if it can.

    With ``resident_layers`` and ``deep="exit"`` every token leaves after the last resident layer.
    So no answer is exact, and ``min_layers`` cannot exceed the resident layers.
    """
    if config.no_exits and settings.threshold < 1.0:
        reason = f"must be 1.0, {config.no_exits}"
        return UnreachableError("threshold", settings.threshold, reason)
    reachable = config.reachable_layers(num_layers)
    if reachable == num_layers:
        return None
    why = (
        f"only the first {reachable} of {num_layers} hold backbone weights "
        f"(resident_layers = {config.resident_layers!r}); "
        "deep = 'fetch' would read the others when needed"
    )
    if not settings.enabled:
        return UnreachableError("enabled", "false", f"must be true, {why}")
    if settings.threshold >= 1.0:
        return UnreachableError("threshold", settings.threshold, f"must be below 1.0, {why}")
    if settings.min_layers > reachable:
        must = f"must be between 1 and {reachable}, {why}"
        return UnreachableError("min_layers", settings.min_layers, must)
    return None


def resolve(
    field: RiverField, defaults: RiverSettings, config: RiverConfig, num_layers: int
) -> RiverSettings:
    """``field`` with the defaults filled in.

    Raises:
        UnreachableError: a setting does not go with the engine, the model or the mode.
    """
    if field.min_layers is not None and field.min_layers > num_layers:
        must = f"must be between 1 and {num_layers}, the number of layers of this model"
        raise UnreachableError("min_layers", field.min_layers, must)
    of_exits = [name for name in EXIT_FIELDS if getattr(field, name) is not None]
    mode = field.mode or ("exit" if of_exits else defaults.mode)
    if mode == "verified" and of_exits:
        reason = "belongs to exits, and 'mode' is 'verified': leave one of them out"
        raise UnreachableError(of_exits[0], getattr(field, of_exits[0]), reason)
    if mode == "verified" and not config.drafts:
        reason = "must be 'exit', this server drafts nothing (verify = 0)"
        raise UnreachableError("mode", "'verified'", reason)
    settings = RiverSettings(
        enabled=field.enabled and defaults.enabled,
        threshold=defaults.threshold if field.threshold is None else field.threshold,
        min_layers=defaults.min_layers if field.min_layers is None else field.min_layers,
        mode=mode,
    )
    if error := unreachable(settings, config, num_layers):
        raise error
    return settings


def settings_of(params: Any, defaults: RiverSettings) -> RiverSettings:
    """The settings with which a request runs.

    Args:
        params: its ``SamplingParams``, or None.
        defaults: the engine's.
    """
    given = _given(params and params.extra_args, defaults)
    return given if params is None else as_sampled(given, params)


def as_sampled(settings: RiverSettings, params: Any) -> RiverSettings:
    """``settings``, adjusted for a request's sampling parameters: without drafts, on the backbone
    alone, if vLLM's rejection sampler does not support them."""
    if settings.may_draft and not may_be_drafted(params):
        return replace(settings, enabled=False)
    return settings


def _given(extra_args: Mapping[str, Any] | None, defaults: RiverSettings) -> RiverSettings:
    """The settings a request carries, or the engine's defaults (requests made in Python).

    The backbone answers a request with malformed settings: one request must not fail a step.
    """
    raw = (extra_args or {}).get(EXTRA_ARGS_KEY)
    if raw is None:
        return defaults
    backbone = replace(defaults, enabled=False)
    if not isinstance(raw, Mapping):
        return backbone
    enabled = raw.get("enabled", defaults.enabled)
    threshold = raw.get("threshold", defaults.threshold)
    min_layers = raw.get("min_layers", defaults.min_layers)
    mode = raw.get("mode", "exit" if any(name in raw for name in EXIT_FIELDS) else defaults.mode)
    numbers = isinstance(threshold, int | float) and isinstance(min_layers, int)
    if not isinstance(enabled, bool) or not numbers or not -1.0 <= threshold <= 1.0:
        return backbone
    if mode not in get_args(ModeName):
        return backbone
    return RiverSettings(enabled, float(threshold), max(1, min_layers), mode)


_Values = Callable[[Any], bool]


def _is_given(value: Any) -> bool:
    return value is not None


def _negative(value: float) -> bool:
    return value < 0


UNDRAFTED: dict[str, _Values] = {
    **dict.fromkeys(("min_p", "logit_bias", "logprob_token_ids"), bool),
    "thinking_token_budget": _is_given,
}
"""Fields of ``SamplingParams``, and the values with which a request has no drafts: vLLM's rejection
sampler (``v1/sample/rejection_sampler.py``) leaves them out for drafted tokens, or errs."""

EVERY_LOGIT: dict[str, _Values] = {
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), _negative),
    "repetition_penalty": lambda penalty: penalty < 1,
    **dict.fromkeys(("logit_bias", "logprob_token_ids", "bad_words"), bool),
    **dict.fromkeys(("allowed_token_ids", "structured_outputs"), bool),
    **dict.fromkeys(("logprobs", "prompt_logprobs"), _is_given),
}
"""The values with which a token outside the likeliest few can be picked or reported. Masks and
raised logits can make a token win that the 4-bit head ranks low; log-probabilities are normalised
over the whole vocabulary. Penalties that only lower logits of seen tokens leave the pick among the
likeliest."""


def may_be_drafted(params: Any) -> bool:
    """Whether a request with these ``SamplingParams`` may have drafts."""
    return not any(among(getattr(params, name)) for name, among in UNDRAFTED.items())


def needs_every_logit(params: Any) -> bool:
    """Whether a request with these ``SamplingParams`` may pick or report an unlikely token."""
    return any(among(getattr(params, name)) for name, among in EVERY_LOGIT.items())
