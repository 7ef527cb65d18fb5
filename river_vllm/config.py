"""The settings of a River engine: validated once, frozen, the same in every process."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Flag, auto
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from river_vllm.architectures import in_4_bit, no_exits
from river_vllm.errors import REMOVED, RiverError, describe_errors, shortened
from river_vllm.guarantee import Calibration
from river_vllm.host import text_of

CONFIG_KEY = "river"
"""River's key in vLLM's ``additional_config``."""

CHECKPOINT_KEY = "river_config"
"""River's key in a checkpoint's ``config.json``."""

PREFIX = "River"
"""Prefix of the names of River's model classes, before the architecture's name."""

PLUGIN = "river"
"""The name of River's entry points, one for every group: ``VLLM_PLUGINS`` is a flat list."""

Scope = Literal["token", "step", "batch"]

DRAFTS = {"adaptive": 15, "fixed": 4}
"""The default K, where no setting of exits is given, by ``draft``. A request alone then has at most
16 rows in a verifying pass, which take little longer than one."""


class Affects(Flag):
    """The parts of River that a setting changes, declared by each field of ``RiverConfig``."""

    NOTHING = 0
    EXITS = auto()
    """Exits alone: a user who gives such a setting, and no K, wants exits."""
    KV = auto()
    """K and V that the river writes: part of the hash of such a block."""
    GRAPH = auto()
    """Traces of the model: part of the key of compiled forwards."""
    COST = auto()
    """The time of a pass: part of the key of saved costs."""
    GUARANTEE = auto()
    """How often a token differs from the backbone's: part of a calibration's guarantee."""
    FILE = auto()
    """Nothing by itself: ``river-vllm calibrate`` writes it into a file, and no option sets it."""
    PLACE = auto()
    """A place on the machine: set by an operator, never by a checkpoint."""


class Settings(BaseModel):
    """Settings whose fields declare their effects: ``Annotated[…, Affects.KV | Affects.COST]``."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
    _affects: ClassVar[dict[str, Affects]]

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        cls._affects = {
            name: item
            for name, field in cls.model_fields.items()
            for item in field.metadata
            if isinstance(item, Affects)
        }
        for name in cls.model_fields.keys() - cls._affects:
            raise TypeError(f"{cls.__name__}.{name} does not declare what it affects")

    @classmethod
    def affecting(cls, what: Affects) -> frozenset[str]:
        """Names of the settings that affect any of ``what``."""
        return frozenset(name for name, affected in cls._affects.items() if affected & what)

    def what_affects(self, what: Affects) -> str:
        """The settings that affect ``what``, with their values, as JSON for a key or a hash."""
        return self.model_dump_json(include=set(self.affecting(what)))


class RiverConfig(Settings):
    """River's settings, fixed when the engine starts.

    ``threshold`` and ``min_layers`` are defaults that a request may override. The docstrings of
    the fields are the help of the command line's options.
    """

    threshold: Annotated[float, Field(ge=-1.0, le=1.0), Affects.EXITS] = 0.9
    """τ: a token leaves once its state transition similarity is above it; 1.0 never leaves."""
    min_layers: Annotated[int, Field(ge=1), Affects.EXITS | Affects.COST] = 1
    """Backbone layers that every token runs."""
    prefill: Annotated[
        Literal["backbone", "sequence"], Affects.EXITS | Affects.KV | Affects.GUARANTEE
    ] = "backbone"
    """Prompts on the backbone, or the paper's sequence-level exit."""
    scope: Annotated[Scope, Affects.EXITS | Affects.KV | Affects.GUARANTEE] = "step"
    """Which tokens leave together. ``token``: each token by its own similarity. ``step``: all
    tokens of a step, once each has settled; none if a row must run the backbone, since the other
    rows then run it at no extra cost. ``batch``: all tokens, at a layer where all settle at once
    (the paper's minimum over the batch)."""
    quantizer: Annotated[
        Literal["hqq", "rtn", "gptq"], Affects.KV | Affects.COST | Affects.GUARANTEE
    ] = "hqq"
    """How the 4-bit weights are made: ``hqq`` or ``rtn`` at load, ``gptq`` beforehand by
    ``river-vllm quantize``. With ``weights`` it may be left out; if given, it must be that
    checkpoint's kind."""
    weights: Annotated[
        str | None, Field(min_length=1), Affects.KV | Affects.GUARANTEE | Affects.PLACE
    ] = None
    """A folder with the layers already in 4 bit: compressed-tensors, or River's own."""
    group_size: Annotated[Literal[32, 64, 128], Affects.KV | Affects.COST | Affects.GUARANTEE] = 128
    """Input features that share one scale; halved where a layer's width needs it."""
    max_rows: Annotated[
        Literal["all", "auto"] | Annotated[int, Field(ge=0)], Affects.EXITS | Affects.KV
    ] = "auto"
    """The most decode tokens in a step with which tokens may leave the backbone. ``auto``: while
    exits make whole steps faster, by times measured at load and while serving."""
    resident_layers: Annotated[
        Literal["all"] | Annotated[int, Field(ge=1)],
        Affects.EXITS | Affects.KV | Affects.GRAPH | Affects.COST,
    ] = "all"
    """Leading decoder layers that keep their bf16 weights; the river keeps all of its own."""
    deep: Annotated[
        Literal["exit", "fetch"], Affects.EXITS | Affects.KV | Affects.GRAPH | Affects.COST
    ] = "exit"
    """A token that would run deeper than the resident layers leaves after the last of them
    (``exit``), or the layer's weights are read from the checkpoint again (``fetch``)."""
    activations: Annotated[
        Literal["bf16", "int8"],
        Affects.EXITS | Affects.KV | Affects.COST | Affects.GUARANTEE,
    ] = "bf16"
    """Type of the activations in the 4-bit products of exits; int8 is faster, most of all with
    many rows. Drafts use int8 where the kernel has it."""
    lm_head: Annotated[
        Literal["backbone", "river"], Affects.EXITS | Affects.COST | Affects.GUARANTEE
    ] = "backbone"
    """LM head of exits: bf16, or 4 bit with exact logits for the best candidates. Drafts use 4 bit
    wherever the model's head allows it."""
    cache_dir: Annotated[str, Field(min_length=1), Affects.PLACE] = "auto"
    """Where 4-bit weights are kept between starts: ``auto`` (beside a local checkpoint if it can
    be written to, else the user's cache), ``off``, or a folder."""
    kernel: Annotated[
        Literal["auto", "native", "torch", "vllm", "dequantize"], Affects.KV | Affects.COST
    ] = "auto"
    """The 4-bit product: ``auto`` (the first of River's own, torch's and vLLM's that takes the
    shape), one of them alone, or weights expanded to bf16 for each product (hundreds of rows a
    step, as in ``river-vllm calibrate``)."""
    verify: Annotated[Annotated[int, Field(ge=0, le=16)] | None, Affects.COST] = None
    """K: the most tokens that the river drafts for one pass of the backbone to check; 0 turns
    drafts off. The default is 15, and 4 for ``fixed`` drafts. A setting of exits makes it 0."""
    draft: Annotated[Literal["adaptive", "fixed"], Affects.NOTHING] = "adaptive"
    """Draft as many tokens as pay, up to K; or always K."""
    calibration: Annotated[Calibration | None, Affects.EXITS | Affects.FILE] = None
    """How the settings were chosen and tested; written by ``river-vllm calibrate``."""
    _in_4_bit: bool = PrivateAttr(default=False)
    _no_exits: str | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        calibrated = {} if self.calibration is None else self.calibration.settings
        for name, measured in calibrated.items():
            if name in REMOVED:
                raise ValueError(f"calibration.settings.{name} was removed; {REMOVED[name]}")
            if (value := getattr(self, name, None)) != measured:
                raise ValueError(
                    f"{name} = {value!r} does not go with the calibration, which was made with "
                    f"{measured!r}; calibrate again, or leave the calibration out"
                )
        if self.activations == "int8" and self.kernel == "torch":
            raise ValueError("kernel 'torch' does not take int8 activations")
        if self.deep == "fetch" and self.resident_layers == "all":
            raise ValueError("deep = 'fetch' needs resident_layers: a number")
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
        """K as it is in force; above 0, requests are answered in verified mode by default."""
        default = 0 if self.model_fields_set & self.affecting(Affects.EXITS) else DRAFTS[self.draft]
        return default if self.verify is None else self.verify

    @property
    def in_4_bit(self) -> bool:
        """Whether the checkpoint's own weights are in 4 bit: then the river runs on them."""
        return self._in_4_bit

    @property
    def no_exits(self) -> str | None:
        """Why no token can leave this engine's backbone; None if tokens can."""
        return self._no_exits

    @property
    def default_threshold(self) -> float:
        """τ of a request that names none; 1.0 where no token can leave."""
        given = "threshold" in self.model_fields_set
        return 1.0 if self._no_exits and not given else self.threshold

    @property
    def ends_early(self) -> bool:
        """Whether no token runs deeper than the resident layers, even of prompts."""
        return self.deep == "exit" and self.resident_layers != "all"

    def offloads(self, num_layers: int) -> bool:
        """Whether some of a model's ``num_layers`` layers may be without bf16 weights."""
        return self.resident_layers not in ("all", num_layers)

    def reachable_layers(self, num_layers: int) -> int:
        """The most backbone layers that a token can run: the resident ones if it must leave after
        them, else all."""
        if self.deep == "fetch" or not self.offloads(num_layers):
            return num_layers
        return int(self.resident_layers)

    def merged(self, changes: Mapping[str, Any], source: str) -> RiverConfig:
        """A copy with ``changes`` on top, validated; errors name them by ``source``."""
        return parse_config({**self.model_dump(exclude_unset=True), **changes}, source)


REPORTED = ("group_sizes", "zero_points", "dtype", "kv_cache_dtype")
"""Values that an engine reports and its agreement depends on, as on ``max_rows``. Groups are
smaller than the setting if a projection's share of the inputs needs it, as on several ranks."""


def calibrated_settings(config: RiverConfig) -> dict[str, Any]:
    """The settings that a calibration with ``config`` holds for."""
    found = config.model_dump(mode="json", include=set(config.affecting(Affects.GUARANTEE)))
    if found["weights"] is not None:
        # The folder itself tells how its weights were made.
        del found["quantizer"], found["group_size"]
    return found


def recorded_settings(config: RiverConfig, engine: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a guarantee depends on beside the dial, the model and the river's weights.

    A test records it, and a server compares it with its own.

    Args:
        engine: what the worker reports (``river_info``).
    """
    found = calibrated_settings(config)
    # The folder's name proves nothing: the hash of its weights identifies them.
    del found["weights"]
    found |= {name: engine[name] for name in REPORTED}
    limit = engine["crossover"]["max_rows"]
    found["max_rows"] = "all" if limit is None else limit
    if found["activations"] == "int8":
        # Each kernel rounds activations in its own way.
        found["kernels"] = engine["kernels"]
    return found


def parse_config(data: object, source: str) -> RiverConfig:
    """The settings of one source, validated as by ``combined``."""
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
        # An error without a field is a conflict of settings, which may have several sources.
        wrong = {sources[name] for name in fields or sources}
        where = ", ".join(source for source in layers if source in wrong)
        raise RiverError(f"{where}: {describe_errors(error, RiverConfig)}") from None


def load_config_file(path: str | Path) -> dict[str, Any]:
    """River settings from a YAML or JSON file (``--river-config``), as written, not yet validated.

    Raises:
        RiverError: the file cannot be read, or does not hold an object.
    """
    try:
        data = yaml.safe_load(text_of(Path(path), f"river config '{path}'"))
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
    of_engine = f'additional_config["{CONFIG_KEY}"]'
    named = checkpoint if isinstance(checkpoint, Mapping) else {}
    for name in sorted(RiverConfig.affecting(Affects.PLACE)):
        default = RiverConfig.model_fields[name].default
        if (value := named.get(name, default)) != default:
            raise RiverError(
                f"{CHECKPOINT_KEY}: '{name}' = {shortened(repr(value))}: a checkpoint may not set "
                f"it; leave it out there, and set it with --river-{name.replace('_', '-')} or "
                f"{of_engine}"
            )
    layers = {CHECKPOINT_KEY: checkpoint, of_engine: additional}
    return combined({source: layer for source, layer in layers.items() if layer is not None})


def river_config_of(vllm_config: Any) -> RiverConfig:
    """The river settings in force for an engine; raises as ``layered_config`` does."""
    additional = vllm_config.additional_config
    given = additional.get(CONFIG_KEY) if isinstance(additional, Mapping) else None
    hf_config = vllm_config.model_config.hf_config
    config = layered_config(getattr(hf_config, CHECKPOINT_KEY, None), given)
    quantization = getattr(hf_config, "quantization_config", None)
    architecture = (vllm_config.model_config.architecture or "").removeprefix(PREFIX)
    config._in_4_bit = in_4_bit(quantization)
    config._no_exits = no_exits(architecture, quantization)
    return config


def serves_river(vllm_config: Any) -> bool:
    """Whether an engine's model is one of River's."""
    return (vllm_config.model_config.architecture or "").startswith(PREFIX)


def asks_for_river(vllm_config: Any) -> bool:
    """Whether ``additional_config`` has River's key, even without any setting in it."""
    additional = vllm_config.additional_config
    return isinstance(additional, Mapping) and CONFIG_KEY in additional
