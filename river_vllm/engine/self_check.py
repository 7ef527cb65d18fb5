"""Compares the river with its backbone before the first request.

A river that misunderstands a model costs time, and never an answer. So River serves models that
nobody has tried. This check runs the same tokens through backbone and river, and compares the last
hidden states. Rounding to 4 bit turns them a little; a wrong projection turns them anywhere.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from river_vllm.compat import init_logger
from river_vllm.model.forward import Forward
from river_vllm.step.table import Head, Span

logger = init_logger("vllm.river")

POSITIONS = 16
LEAST_COSINE = 0.5
"""Below it the river is not used: see docs/models.md for what checkpoints have."""


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """How near the river comes to the backbone, the same on every rank.

    Attributes:
        agreement: share of positions at which both have the same likeliest token.
        cosine: median over the positions, of the hidden states that the LM head reads.
        passed: whether the river is used.
    """

    agreement: float
    cosine: float
    passed: bool

    def info(self) -> dict[str, Any]:
        """For ``GET /river``."""
        return {"self_check": asdict(self)}


def self_check(runner: Any, forward: Forward) -> SelfCheck:
    """Run one sequence of tokens on both paths, in vLLM's null block, and warn if they part.

    Args:
        runner: vLLM's V1 runner, warmed up and with its K/V cache.
    """
    sizes = [table.block_size for table in runner.input_batch.block_table.block_tables]
    rows = min(POSITIONS, runner.max_num_tokens, runner.max_model_len, *sizes)
    generator = torch.Generator().manual_seed(0)
    size = runner.model_config.get_vocab_size()
    tokens = torch.randint(size, (rows,), generator=generator).to(runner.device)

    def run(layers: int, head: Head) -> tuple[torch.Tensor, torch.Tensor]:
        due = forward.decode([Span(0, 0, rows)], tokens, layers, head)
        hidden = forward.run(due)
        likeliest = runner.get_model().compute_logits(hidden).argmax(dim=-1)
        forward.river.rest()
        return hidden.float(), likeliest

    hidden, best = run(forward.river.num_layers, "backbone")
    drafted, guess = run(0, "draft")
    cosine = torch.cosine_similarity(hidden, drafted, dim=-1).nan_to_num(0.0).median()
    agreement = (best == guess).float().mean()
    shares = forward.river.agreed(torch.stack((agreement, cosine))).tolist()
    found = SelfCheck(round(shares[0], 3), round(shares[1], 3), shares[1] >= LEAST_COSINE)
    if not found.passed:
        logger.warning(
            "River: the self-check found hidden states of cosine %s between the river and the "
            "backbone (at least %s is expected), so the river is not used: the backbone answers "
            "every request, as stock vLLM would",
            found.cosine,
            LEAST_COSINE,
        )
    return found
