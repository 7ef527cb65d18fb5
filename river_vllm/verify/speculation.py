"""vLLM's own speculative decoding, set up for a draft model that is the target itself."""

from __future__ import annotations

from river_vllm.compat import SpeculativeConfig, VllmConfig, current_platform
from river_vllm.errors import UnsupportedModelError


class RiverSpeculativeConfig(SpeculativeConfig):
    """Told from one that a user asked for by its type."""

    def compute_hash(self) -> str:
        """As without one: drafting with the target itself changes nothing in its forward, and an
        engine that verifies reads the graphs of one that exits (``VllmConfig.compute_hash``)."""
        return "None"


def install(vllm_config: VllmConfig, tokens: int) -> None:
    """Have vLLM allocate look-ahead slots, verify drafts and count them.

    The method ``draft_model`` brings all three; ``worker/cpu.py`` and ``worker/gpu.py`` put River's
    drafter in the place of the one that would load a second model.

    Args:
        tokens: the most that may be drafted for one pass of the backbone.

    Raises:
        UnsupportedModelError: the engine cannot draft with the river.
    """
    if isinstance(vllm_config.speculative_config, RiverSpeculativeConfig):
        return  # vLLM validates a configuration again when it copies it
    # Each runner has a drafter of River's on the platform that vLLM itself uses it on.
    runner = "V1" if current_platform.is_cpu() else "V2"
    if vllm_config.use_v2_model_runner != (runner == "V2"):
        raise UnsupportedModelError(
            f"River verifies drafts here with vLLM's model runner {runner} only "
            f"(VLLM_USE_V2_MODEL_RUNNER={int(runner == 'V2')})"
        )
    vllm_config.speculative_config = RiverSpeculativeConfig(
        method="draft_model",
        model=vllm_config.model_config.model,
        revision=vllm_config.model_config.revision,
        num_speculative_tokens=tokens,
        draft_sample_method="probabilistic",
        target_model_config=vllm_config.model_config,
        target_parallel_config=vllm_config.parallel_config,
    )
