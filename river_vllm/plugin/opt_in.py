"""Serves a model with River if ``additional_config["river"]`` is set, without other options.

vLLM looks up a configuration hook by the architecture's name. River wraps every hook. For an engine
with this setting the wrapper replaces vLLM's model class by River's, as ``hf_overrides`` with
``River<Architecture>`` does. For other engines it calls the wrapped hook.
"""

from __future__ import annotations

from functools import cache

from river_vllm.compat import ModelConfig, VerifyAndUpdateConfig, VllmConfig, init_logger
from river_vllm.config import asks_for_river, serves_river
from river_vllm.model.architectures import river_architecture
from river_vllm.plugin.hook import RiverConfigHook

logger = init_logger("vllm.river")


@cache
def opt_in(own: type[VerifyAndUpdateConfig]) -> type[VerifyAndUpdateConfig]:
    """The hook for an architecture of vLLM's or of another plugin.

    Args:
        own: the architecture's hook so far, or vLLM's base class, which does nothing.
    """

    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Serve with River, if that is asked for.

        Raises:
            RiverError: River does not carry the architecture, or ``RiverConfigHook`` refuses.
        """
        if asks_for_river(vllm_config) and not serves_river(vllm_config):
            _take_rivers_class(vllm_config.model_config)
            # River's hook calls this one again, which then calls ``own``.
            RiverConfigHook.verify_and_update_config(vllm_config)
        else:
            own.verify_and_update_config(vllm_config)

    members = {
        "__module__": __name__,
        "__doc__": own.__doc__,
        "verify_and_update_config": staticmethod(verify_and_update_config),
    }
    return type("OptIn", (own,), members)


def _take_rivers_class(model: ModelConfig) -> None:
    """Set every field that depends on the architecture's name to that of River's class, as vLLM's
    ``SpeculativeConfig.update_arch_`` does for a draft model."""
    name = river_architecture(model.architecture, model.hf_config)
    model.hf_config.architectures = [name]
    model.model_arch_config = model.get_model_arch_config()
    model._model_info, model._architecture = model.registry.inspect_model_cls([name], model)
    logger.info("River: the model is served as %s", name)
