"""The name of River's class for a model, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from river_vllm.architectures import why_not
from river_vllm.config import PREFIX
from river_vllm.errors import RiverError, UnsupportedModelError


def river_architecture(architecture: str, config: Any = None) -> str:
    """``LlamaForCausalLM`` → ``RiverLlamaForCausalLM``.

    A text model that transformers alone knows runs on vLLM's Transformers backend.

    Args:
        config: the checkpoint's transformers configuration.

    Raises:
        UnsupportedModelError: vLLM has no such architecture, or the model is of a refused form.
    """
    import transformers

    from river_vllm.compat import ModelRegistry, try_match_architecture_defaults

    name = architecture.removeprefix(PREFIX)
    reason = why_not(config)
    _, (runner, _) = try_match_architecture_defaults(name) or ("", ("generate", "none"))
    if runner != "generate":
        reason = reason or "vLLM serves it as a pooling model, without a river"
    if name not in ModelRegistry.models:
        text_alone = name.endswith("ForCausalLM") and not hasattr(config, "text_config")
        if not (text_alone and hasattr(transformers, name)):
            reason = reason or "vLLM has no model class of this name"
        name = "TransformersForCausalLM"
    if reason is not None:
        raise UnsupportedModelError(
            f"architecture '{architecture}' is not supported: {reason} "
            "('river-vllm models' lists what is)"
        )
    return PREFIX + name


def checkpoint_architecture(model: str, options: Mapping[str, Any]) -> tuple[str, Any]:
    """The architecture that a checkpoint names in its ``config.json``, and that configuration.

    Args:
        model: a Hugging Face id or a folder.
        options: vLLM engine arguments that say how to read it (``revision`` and the like).

    Raises:
        RiverError: the configuration cannot be read.
    """
    from river_vllm.compat import get_config

    try:
        config = get_config(
            model,
            trust_remote_code=bool(options.get("trust_remote_code")),
            revision=options.get("revision"),
            code_revision=options.get("code_revision"),
            config_format=options.get("config_format") or "auto",
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RiverError(
            f"model '{model}' cannot be read: {reason} Give a folder with a config.json, "
            "or a hub id that this machine can reach"
        ) from error
    architectures = getattr(config, "architectures", None) or ["(none)"]
    return str(architectures[0]), config
