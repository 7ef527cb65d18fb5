"""vLLM's forward context for a pass of River's own, beside the one of the step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from river_vllm.compat import (
    CommonAttentionMetadata,
    create_forward_context,
    override_forward_context,
)


@contextmanager
def own_forward_context(
    vllm_config: Any, parts: Iterable[tuple[Any, CommonAttentionMetadata]]
) -> Iterator[None]:
    """Run the model on rows that are not the step's, in the forward that may route them.

    Args:
        parts: the runner's attention groups, each with what its metadata is built from.
    """
    metadata: dict[str, Any] = {}
    slots: dict[str, torch.Tensor] = {}
    for group, common in parts:
        built = group.get_metadata_builder(0).build(0, common)
        for name in group.layer_names:
            metadata[name] = built
            slots[name] = common.slot_mapping
    context = create_forward_context(metadata, vllm_config, slot_mapping=slots, skip_compiled=True)
    with override_forward_context(context):
        yield
