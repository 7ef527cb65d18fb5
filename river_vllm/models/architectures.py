"""The architectures that River carries, by the name in a checkpoint's ``config.json``."""

from __future__ import annotations

from river_vllm.errors import UnsupportedModelError

PREFIX = "River"

ARCHITECTURES: tuple[str, ...] = (
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
)


def river_architecture(architecture: str) -> str:
    """``LlamaForCausalLM`` → ``RiverLlamaForCausalLM``.

    Raises:
        UnsupportedModelError: River does not carry the architecture.
    """
    if architecture.removeprefix(PREFIX) not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"architecture '{architecture}' is not supported (supported: "
            f"{', '.join(ARCHITECTURES)})"
        )
    return PREFIX + architecture.removeprefix(PREFIX)
