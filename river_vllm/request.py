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

OF_EXITS = ("threshold", "min_layers")
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
    return RiverSettings(True, config.threshold, config.min_layers, mode)


class UnreachableError(RiverError):
    """A request has a setting that the engine cannot serve.

    Args:
        field: the name of that setting.
        message: its value, the allowed ones, and the reason.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def unreachable(
    settings: RiverSettings, config: RiverConfig, num_layers: int
) -> UnreachableError | None:
    """Why an engine cannot serve ``settings``; None if it can.

    With ``resident_layers`` and ``deep="exit"`` every token leaves after the last resident layer.
    So no answer is exact, and ``min_layers`` cannot exceed the resident layers.
    """
    reachable = config.reachable_layers(num_layers)
    if reachable == num_layers:
        return None
    why = (
        f"only the first {reachable} of {num_layers} hold backbone weights "
        f"(resident_layers = {config.resident_layers!r}); "
        "deep = 'fetch' would read the others when needed"
    )
    if not settings.enabled:
        return UnreachableError("enabled", f"'enabled' = false: must be true, {why}")
    if settings.threshold >= 1.0:
        return UnreachableError(
            "threshold", f"'threshold' = {settings.threshold}: must be below 1.0, {why}"
        )
    if settings.min_layers > reachable:
        return UnreachableError(
            "min_layers",
            f"'min_layers' = {settings.min_layers}: must be between 1 and {reachable}, {why}",
        )
    return None


def resolve(
    field: RiverField, defaults: RiverSettings, config: RiverConfig, num_layers: int
) -> RiverSettings:
    """``field`` with the defaults filled in.

    Raises:
        UnreachableError: a setting does not go with the engine, the model or the mode.
    """
    if field.min_layers is not None and field.min_layers > num_layers:
        raise UnreachableError(
            "min_layers",
            f"'min_layers' = {field.min_layers}: must be between 1 and {num_layers}, "
            "the number of layers of this model",
        )
    of_exits = [name for name in OF_EXITS if getattr(field, name) is not None]
    mode = field.mode or ("exit" if of_exits else defaults.mode)
    if mode == "verified" and of_exits:
        raise UnreachableError(
            of_exits[0],
            f"'{of_exits[0]}' = {getattr(field, of_exits[0])}: belongs to exits, and 'mode' is "
            "'verified': leave one of them out",
        )
    if mode == "verified" and not config.drafts:
        raise UnreachableError(
            "mode", "'mode' = 'verified': must be 'exit', this server drafts nothing (verify = 0)"
        )
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
    mode = raw.get("mode", "exit" if any(name in raw for name in OF_EXITS) else defaults.mode)
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


@dataclass(frozen=True, slots=True)
class Parameter:
    """One field of vLLM's ``SamplingParams``: whether it rules out drafts, or the 4-bit LM head.

    Attributes:
        undrafted: values with which a request has no drafts: vLLM's rejection sampler
            (``v1/sample/rejection_sampler.py``) leaves them out for drafted tokens, or errs.
        every_logit: values with which a token outside the likeliest few can be picked or reported.
            Masks and raised logits can make a token win that the 4-bit head ranks low;
            log-probabilities are normalised over the whole vocabulary. Penalties that only lower
            logits of seen tokens leave the pick among the likeliest.
    """

    undrafted: _Values | None = None
    every_logit: _Values | None = None


PARAMETERS: dict[str, Parameter] = {
    "min_p": Parameter(undrafted=bool),
    "logit_bias": Parameter(undrafted=bool, every_logit=bool),
    "logprob_token_ids": Parameter(undrafted=bool, every_logit=bool),
    "thinking_token_budget": Parameter(undrafted=_is_given),
    # Applied to each drafted token by the rejection sampler, or before it.
    **dict.fromkeys(("temperature", "top_p", "top_k", "seed", "min_tokens"), Parameter()),
    "presence_penalty": Parameter(every_logit=_negative),
    "frequency_penalty": Parameter(every_logit=_negative),
    "repetition_penalty": Parameter(every_logit=lambda penalty: penalty < 1),
    "bad_words": Parameter(every_logit=bool),
    "allowed_token_ids": Parameter(every_logit=bool),
    "structured_outputs": Parameter(every_logit=bool),
    "logprobs": Parameter(every_logit=_is_given),
    "prompt_logprobs": Parameter(every_logit=_is_given),
    # Applied to sampled tokens, or to none: by the scheduler and the front end. The last two lines
    # are of vLLM's model runner V2, which serves no river: refused, or without effect.
    **dict.fromkeys(
        (
            *("n", "max_tokens", "stop", "stop_token_ids", "ignore_eos", "repetition_detection"),
            *("detokenize", "skip_special_tokens", "spaces_between_special_tokens"),
            *("include_stop_str_in_output", "output_kind", "stream_interval", "flat_logprobs"),
            *("skip_reading_prefix_cache", "skip_clone", "routed_experts_prompt_start"),
            *("output_text_buffer_length", "_eos_token_id", "_all_stop_token_ids"),
            *("_bad_words_token_ids", "_watermarking_skipped", "extra_args"),
            *("prompt_logprob_token_ids", "prompt_logprob_start"),
            *("trace_decode_token_ids", "watermarking"),
        ),
        Parameter(),
    ),
}
"""All fields, by name."""

_UNDRAFTED = {name: p.undrafted for name, p in PARAMETERS.items() if p.undrafted}
_EVERY_LOGIT = {name: p.every_logit for name, p in PARAMETERS.items() if p.every_logit}


def may_be_drafted(params: Any) -> bool:
    """Whether a request with these ``SamplingParams`` may have drafts."""
    return not any(among(getattr(params, name)) for name, among in _UNDRAFTED.items())


def needs_every_logit(params: Any) -> bool:
    """Whether a request with these ``SamplingParams`` may pick or report an unlikely token."""
    return any(among(getattr(params, name)) for name, among in _EVERY_LOGIT.items())
