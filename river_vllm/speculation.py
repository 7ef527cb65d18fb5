"""vLLM's speculative decoding, set up with the target model as its own draft model."""

from __future__ import annotations

from river_vllm.compat import SpeculativeConfig, VllmConfig, current_platform
from river_vllm.errors import UnsupportedModelError


class RiverSpeculativeConfig(SpeculativeConfig):
    """River's configuration, told by its type from a user's."""

    def compute_hash(self) -> str:
        """The hash of no speculation (``VllmConfig.compute_hash``). Drafts do not change the
        target's forward, so engines with and without them share compiled forwards."""
        return "None"

    @property
    def max_num_new_slots_for_drafting(self) -> int:
        """0: drafts run in passes of their own, and take no rows of vLLM's batch from prompts."""
        return 0


def install(vllm_config: VllmConfig, tokens: int) -> None:
    """Have vLLM allocate look-ahead slots, verify drafts and count them.

    The method ``draft_model`` does all three. ``engine/worker.py`` replaces its drafter, which
    would load a second model, by River's. vLLM's asynchronous scheduling is switched off: it needs
    equally many drafts for every request, on the device, before the host knows any.

    Args:
        tokens: the most that may be drafted for one pass of the backbone.

    Raises:
        UnsupportedModelError: asynchronous scheduling is asked for.
    """
    if isinstance(vllm_config.speculative_config, RiverSpeculativeConfig):
        return  # vLLM validates a configuration again when it copies it
    if vllm_config.scheduler_config.async_scheduling:
        raise UnsupportedModelError(
            "River cannot be combined with asynchronous scheduling where it verifies drafts (leave "
            "out --async-scheduling, or --river-verify 0)",
            cure="",
        )
    if not current_platform.is_cpu():
        # On the CPU vLLM turns it off itself, after it has derived other settings from it, which
        # are in the key of its compiled forwards.
        vllm_config.scheduler_config.async_scheduling = False
    vllm_config.speculative_config = RiverSpeculativeConfig(
        method="draft_model",
        model=vllm_config.model_config.model,
        revision=vllm_config.model_config.revision,
        code_revision=vllm_config.model_config.code_revision,
        num_speculative_tokens=tokens,
        draft_sample_method="probabilistic",
        target_model_config=vllm_config.model_config,
        target_parallel_config=vllm_config.parallel_config,
    )
