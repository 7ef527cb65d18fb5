"""``River<Architecture>`` for every supported architecture, as attributes of this module.

vLLM's registry resolves ``"river_vllm.plugin.classes:RiverLlamaForCausalLM"`` by import and
``getattr``; the class is made then, from vLLM's class for the architecture.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from river_vllm.compat import ModelRegistry, VllmConfig
from river_vllm.config import PREFIX, river_config_of
from river_vllm.model.attach import attach
from river_vllm.model.residency import releasing
from river_vllm.modes import MODES


@cache
def __getattr__(name: str) -> type[nn.Module]:
    if not name.startswith(PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return river_class(name, ModelRegistry.models[name.removeprefix(PREFIX)].load_model_cls())


def river_class(name: str, base: type[nn.Module]) -> type[nn.Module]:
    """A subclass of ``base`` whose decoder layers carry a river.

    vLLM looks at the constructor's argument names, so they are spelt out.
    """

    def __init__(self: Any, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        _name_both(vllm_config.model_config.hf_config, name)
        base.__init__(self, vllm_config=vllm_config, prefix=prefix)
        config = river_config_of(vllm_config)
        heads = {mode.head(config) for mode in MODES}
        self.river, self.river_info = attach(self, config, vllm_config, heads)

    def load_weights(self: Any, weights: Any, *args: Any, **kwargs: Any) -> Any:
        return base.load_weights(self, releasing(weights), *args, **kwargs)

    members = {"__init__": __init__, "load_weights": load_weights, "__module__": __name__}
    return type(name, (base,), members)


def _name_both(hf_config: Any, name: str) -> None:
    """Add the architecture's own name to a configuration that names River's: by it vLLM's
    Transformers backend finds how transformers renames a checkpoint's weights
    (``models/transformers/base.py``, ``_create_hf_to_vllm_mapper``)."""
    architectures = getattr(hf_config, "architectures", None) or [name]
    own = name.removeprefix(PREFIX)
    if own not in architectures:
        hf_config.architectures = [*architectures, own]
