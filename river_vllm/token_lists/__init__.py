"""Lists of the tokens that a model really uses, for the LM head of its drafts: those that are
shipped, and which one an engine takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from river_vllm.calibrate.fingerprint import served_checkpoint
from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError
from river_vllm.modes.verified.token_list import FILE_NAME, TokenList, read
from river_vllm.weights.cache import weights_folder


def shipped() -> list[Path]:
    """The files; each names the checkpoints that it was counted on."""
    return sorted(Path(__file__).parent.glob("*.json"))


def list_for(config: RiverConfig, model_config: Any) -> TokenList | None:
    """The list of an engine's drafts: the one in its folder of 4-bit weights, as ``river-vllm
    quantize`` writes it, or one that is shipped for the checkpoint, which is known by the hashes of
    its configuration and weights.

    Args:
        model_config: vLLM's.

    Raises:
        RiverError: a list is damaged, or of a model with another vocabulary.
    """
    folder = weights_folder(config, model_config.model)
    if folder is not None and (folder / FILE_NAME).exists():
        found, vocabulary = read(folder / FILE_NAME), model_config.get_vocab_size()
        if found.vocabulary != vocabulary:
            raise RiverError(
                f"token list '{folder / FILE_NAME}' is of {found.vocabulary} tokens, the model has "
                f"{vocabulary}; remove it, or make it again with 'river-vllm quantize'"
            )
        return found
    served = served_checkpoint(model_config)
    known = map(read, shipped())
    return next((one for one in known if any(m.proves(served) for m in one.models)), None)
