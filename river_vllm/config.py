"""The settings of a River engine: validated once, frozen, the same in every process."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from river_vllm.calibration.record import Calibration
from river_vllm.errors import RiverError

CONFIG_KEY = "river"
"""River's key in vLLM's ``additional_config``."""

CHECKPOINT_KEY = "river_config"
"""River's key in a checkpoint's ``config.json``."""

Scope = Literal["token", "step", "batch"]
CriterionName = Literal["cosine", "norm"]

DRAFTS = 4
"""K where nobody says otherwise."""

OF_EXITS = frozenset(
    (
        *("threshold", "min_layers", "layer_offsets", "calibration", "prefill", "scope"),
        *("criterion", "max_rows", "activations", "lm_head", "lm_head_candidates"),
        *("resident_layers", "deep"),
    )
)
"""Settings of exits alone: who gives one wants exits, where K is not given."""

PATH_FIELDS = ("weights", "cache_dir")
"""Settings that name places on the machine: the operator's, never a checkpoint's."""


class RiverConfig(BaseModel):
    """Everything about the river that is fixed when the engine starts.

    ``threshold`` and ``min_layers`` are defaults; each request may bring its own. The docstrings
    of the fields are the help of the command line's options.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    threshold: float = Field(default=0.9, ge=-1.0, le=1.0)
    """τ: a token leaves once its state transition similarity is above it; 1.0 never leaves."""
    min_layers: int = Field(default=1, ge=1)
    """Backbone layers that every token runs."""
    layer_offsets: (
        Annotated[
            tuple[Annotated[float, Field(strict=True, ge=-2.0, le=2.0)], ...],
            Field(strict=False, min_length=1),
        ]
        | None
    ) = None
    """Added to τ for the decisions after 1, 2, … L−1 layers: a threshold for each layer, all of
    which τ still moves. Without them it is the same after every layer."""
    prefill: Literal["backbone", "sequence"] = "backbone"
    """Prompts on the backbone, or the paper's sequence-level exit."""
    scope: Scope = "step"
    """Which tokens leave together. ``token``: each on its own similarity, whatever the other rows
    of the step do. ``step``: all of a step, once each has settled, and none beside a row that has
    to run the backbone: its weights are then read anyway, and the other rows run it at no extra
    cost. ``batch``: all, at a layer where all settle at once (the paper's minimum over the
    batch)."""
    criterion: CriterionName = "cosine"
    """What τ is compared with after a layer: the paper's state transition similarity, or how small
    the state still is (``criterion.py``), whose τ ``river-vllm calibrate`` has to find."""
    quantizer: Literal["hqq", "rtn", "gptq", "awq"] = "hqq"
    """How the 4-bit weights are made: ``hqq`` or ``rtn`` at load, ``gptq`` beforehand by
    ``river-vllm quantize``. With ``weights`` it need not be given; if it is, that checkpoint has to
    be of this kind, and only there it may be ``awq``."""
    weights: str | None = Field(default=None, min_length=1)
    """A folder with the layers already in 4 bit: compressed-tensors, AWQ, GPTQ, or River's own."""
    group_size: Literal[32, 64, 128] = 128
    """Input features that share one scale; halved where a layer's width needs it."""
    max_rows: Literal["all", "auto"] | Annotated[int, Field(ge=0)] = "auto"
    """Up to how many tokens of a step may leave the backbone; ``auto``: as long as whole steps are
    faster with them, as measured at load and by the steps themselves."""
    resident_layers: Literal["all", "auto"] | Annotated[int, Field(ge=1)] = "all"
    """Leading decoder layers that keep their bf16 weights; the river keeps all of its own.
    ``auto`` follows the depths that tokens reach."""
    deep: Literal["exit", "fetch"] = "exit"
    """Where a token would go deeper than the resident layers: it leaves after the last of them,
    or the layer's weights are read from the checkpoint again."""
    activations: Literal["bf16", "int8"] = "bf16"
    """What the 4-bit products of exits multiply by; int8 is faster, most of all with many rows.
    Drafts take int8 where the kernel has it."""
    lm_head: Literal["backbone", "river"] = "backbone"
    """Of exits: the bf16 LM head, or 4-bit candidates with exact logits for the best of them.
    Drafts are ranked in 4 bit wherever the model's head allows it."""
    lm_head_candidates: int = Field(default=256, ge=1)
    """Logits per token that the river's LM head makes exact."""
    cache_dir: str = Field(default="auto", min_length=1)
    """Where 4-bit weights are kept between starts: ``auto`` (beside a local checkpoint if it can
    be written to, else the user's cache), ``off``, or a folder."""
    kernel: Literal["auto", "native", "torch", "vllm", "dequantize"] = "auto"
    """The 4-bit product: ``auto`` (the first of River's own, torch's and vLLM's that takes the
    shape), one of them alone, or weights expanded to bf16 for each product (hundreds of rows a
    step, as in ``river-vllm calibrate``)."""
    verify: Annotated[int, Field(ge=0, le=16)] | None = None
    """K: tokens that the river may draft for one pass of the backbone to check; 0 turns drafts off.
    Without it 4, or 0 where a setting of exits is given."""
    draft: Literal["adaptive", "fixed"] = "adaptive"
    """As many tokens as pay, up to K; or always K."""

    calibration: Calibration | None = None
    """What the settings were chosen from; written by ``river-vllm calibrate``."""

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        if self.calibration is not None:
            for name, measured in self.calibration.settings.items():
                value = getattr(self, name, None)
                if value != measured:
                    raise ValueError(
                        f"{name} = {value!r} does not go with the calibration, which was made "
                        f"with {measured!r}; calibrate again, or leave the calibration out"
                    )
        if self.quantizer == "awq" and self.weights is None:
            raise ValueError(
                "quantizer 'awq' needs weights: River reads AWQ checkpoints and makes none"
            )
        if self.activations == "int8" and self.kernel == "torch":
            raise ValueError("kernel 'torch' does not take int8 activations")
        if self.deep == "fetch" and self.resident_layers == "all":
            raise ValueError("deep = 'fetch' needs resident_layers: a number, or 'auto'")
        if self.verify and self.resident_layers != "all":
            raise ValueError(
                f"verify = {self.verify} needs every layer in every step, so resident_layers "
                f"cannot be {self.resident_layers!r}"
            )
        if self.draft == "fixed" and not self.drafts:
            raise ValueError("draft must be 'adaptive' where verify is 0")
        if self.ends_early and self.calibration is not None:
            raise ValueError(
                f"resident_layers = {self.resident_layers!r} does not go with the calibration, "
                "which had every layer; use deep = 'fetch', or leave the calibration out"
            )
        return self

    @property
    def drafts(self) -> int:
        """K as it is in force. Where it is above 0 a request that says nothing is verified."""
        if self.verify is not None:
            return self.verify
        return 0 if self.model_fields_set & OF_EXITS else DRAFTS

    @property
    def ends_early(self) -> bool:
        """Whether every token, of exact requests and prompts too, leaves after the last resident
        layer, where that is not the model's last."""
        return self.deep == "exit" and self.resident_layers != "all"

    def offloads(self, num_layers: int) -> bool:
        """Whether some of a model's ``num_layers`` layers may be without bf16 weights."""
        return self.resident_layers not in ("all", num_layers)

    def reachable_layers(self, num_layers: int) -> int:
        """Backbone layers that a token can run if its request asks for them: all, or, where tokens
        leave after the last resident layer, those that are never evicted."""
        if self.deep == "fetch" or not self.offloads(num_layers):
            return num_layers
        return self.min_layers if self.resident_layers == "auto" else int(self.resident_layers)

    def merged(self, changes: Mapping[str, Any], source: str) -> RiverConfig:
        """A copy with ``changes`` on top, validated; errors name them by ``source``."""
        return parse_config({**self.model_dump(exclude_unset=True), **changes}, source)


def parse_config(data: object, source: str) -> RiverConfig:
    """Validate ``data``.

    Raises:
        RiverError: names the source, the field, the value and what is allowed.
    """
    return combined({source: data})


def combined(layers: Mapping[str, object]) -> RiverConfig:
    """The settings of several sources, each over those before it, validated together.

    Raises:
        RiverError: names the source, the field, the value and what is allowed.
    """
    settings: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, given in layers.items():
        if not isinstance(given, Mapping):
            raise RiverError(f"{source}: expected an object of River settings, got {given!r}")
        settings |= given
        sources |= dict.fromkeys(given, source)
    try:
        return RiverConfig.model_validate(settings)
    except ValidationError as error:
        fields = {str(item["loc"][0]) for item in error.errors() if item["loc"]} & set(sources)
        # Without a field, settings do not go together: they may come from several sources.
        wrong = {sources[name] for name in fields or sources}
        where = ", ".join(source for source in layers if source in wrong)
        raise RiverError(f"{where}: {describe_errors(error, RiverConfig)}") from None


MAX_ERRORS = 5
MAX_VALUE = 100
"""Characters of a name or a value in an error: both may come from a stranger."""


_REPR = reprlib.Repr()
"""Looks at the first values of a list and no further in than six levels."""
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 2 * MAX_VALUE


def describe_errors(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for people: field, value, what is allowed."""
    items = error.errors()
    found = [_describe(item, model) for item in items[:MAX_ERRORS]]
    if len(items) > MAX_ERRORS:
        found.append(f"and {len(items) - MAX_ERRORS} more")
    return "; ".join(found)


def _describe(item: Any, model: type[BaseModel]) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if not name and item["type"] == "value_error":
        return str(item["ctx"]["error"])
    name = shortened(name or "value")
    if item["type"] == "extra_forbidden":
        return f"unknown field '{name}' (allowed: {', '.join(model.model_fields)})"
    value = shortened(_REPR.repr(item["input"]))
    return f"'{name}' = {value}: {item['msg'][:1].lower()}{item['msg'][1:]}"


def shortened(text: str) -> str:
    """``text`` as an error may repeat it."""
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}…"


def load_config_file(path: str | Path) -> dict[str, Any]:
    """River settings from a YAML or JSON file (``--river-config``), as written, not yet validated.

    Raises:
        RiverError: the file cannot be read, or does not hold an object.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RiverError(f"river config '{path}': {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise RiverError(f"river config '{path}' is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise RiverError(f"river config '{path}' is neither YAML nor JSON: {error}") from None
    if not isinstance(data, dict):
        raise RiverError(f"river config '{path}': expected an object of settings, got {data!r}")
    inner = data.get(CHECKPOINT_KEY, data)
    beside = sorted(set(data) & set(RiverConfig.model_fields)) if inner is not data else []
    if beside:
        raise RiverError(
            f"river config '{path}': {', '.join(beside)} beside '{CHECKPOINT_KEY}'; "
            "put every setting inside it"
        )
    if not isinstance(inner, dict):
        raise RiverError(f"river config '{path}': '{CHECKPOINT_KEY}' must be an object")
    return inner


def layered_config(checkpoint: object, additional: object) -> RiverConfig:
    """Defaults, then the checkpoint's ``river_config``, then ``additional_config["river"]``.

    Raises:
        RiverError: a setting is wrong, or the checkpoint names a path.
    """
    layers = {CHECKPOINT_KEY: checkpoint, f'additional_config["{CONFIG_KEY}"]': additional}
    given = {source: layer for source, layer in layers.items() if layer is not None}
    named = checkpoint if isinstance(checkpoint, Mapping) else {}
    for name in PATH_FIELDS:
        default = RiverConfig.model_fields[name].default
        if (value := named.get(name, default)) != default:
            raise RiverError(
                f"{CHECKPOINT_KEY}: '{name}' = {shortened(repr(value))}: a checkpoint may not set "
                f"it; leave it out there, and set it with --river-{name.replace('_', '-')} or "
                f'additional_config["{CONFIG_KEY}"]'
            )
    return combined(given)
