"""vLLM's configuration, as far as River's settings are read from it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


def config_with(river: dict[str, Any], model: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A configuration with these settings of River's.

    Args:
        model: more of its ``model_config``.
    """
    defaults = {"architecture": "RiverLlamaForCausalLM", "hf_config": SimpleNamespace()}
    model_config = SimpleNamespace(**(defaults | (model or {})))
    return SimpleNamespace(model_config=model_config, additional_config={"river": river}, **changes)
