"""The exit decision, between two decoder layers.

A criterion gives each row a number, which is compared with the row's τ. River uses the paper's
state transition similarity s = cos(h^(l−1), h^(l)).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from river_vllm.step.table import StepTable

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From the rows' states before and after a layer, ``[rows, hidden]``, to float32 ``[rows]`` in
[−1, 1], larger where a state has settled more; NaN where no threshold may admit a row."""

Reading = Callable[
    [torch.Tensor | None, torch.Tensor, torch.Tensor | None],
    tuple[torch.Tensor, torch.Tensor | None],
]
"""Reads the rows between two layers. Arguments: their states before the last layer, float32
``[rows, hidden]`` or None, and the next layer's hidden states and residual. Result: their states
now, and their values or None."""

Broadcast = Callable[[torch.Tensor], torch.Tensor]
"""Returns one rank's values on every tensor-parallel rank."""


def by_torch(criterion: Criterion) -> Reading:
    """A criterion by its own torch operators, for any device and type."""

    def read(
        before: torch.Tensor | None, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # vLLM's layers return their last output and the residual un-added (``models/llama.py``,
        # ``LlamaDecoderLayer.forward``). The next norm adds them in place, so ``after`` must not
        # alias either. The sum is rounded as the model rounds it.
        if residual is None:
            after = hidden.to(torch.float32, copy=True)
        else:
            after = (hidden + residual).float()
        return after, None if before is None else criterion(before, after)

    return read


def transition_similarity(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Cosine of each row's state before and after a layer.

    Args:
        before, after: ``[rows, hidden]``, any float type; computed in float32.

    Returns:
        float32 ``[rows]``, at most 1 (rounding must not let a token pass τ = 1); NaN where a
        state is zero or not finite, which no threshold admits.
    """
    a, b = before.float(), after.float()
    dot = torch.linalg.vecdot(a, b)
    norms = torch.linalg.vecdot(a, a) * torch.linalg.vecdot(b, b)
    return (dot / norms.sqrt()).clamp_(max=1.0)


CRITERION: Criterion = transition_similarity
"""The criterion in use; ``model/attach.py`` takes its native form where there is one."""


class Router:
    """Moves groups of a pass from the backbone to the river as their states settle.

    Args:
        read: the exit criterion.
        broadcast: gives rank 0's similarities to all ranks, so that they decide alike by
            construction; None with one rank.
    """

    def __init__(self, read: Reading, broadcast: Broadcast | None = None) -> None:
        self._read = read
        self._broadcast = broadcast

    def agreed(self, values: torch.Tensor) -> torch.Tensor:
        """The values that all ranks decide by."""
        return values if self._broadcast is None else self._broadcast(values)

    def decide(
        self,
        table: StepTable,
        layers_run: int,
        hidden: torch.Tensor,
        residual: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Decide which groups leave after ``layers_run`` backbone layers.

        Args:
            layers_run: l, backbone layers that the rows have run; 0 before the first.
            hidden, residual: arguments of the next layer, ``[rows, hidden]``.

        Returns:
            The similarity of each active row, float32; None where none was needed.
        """
        if layers_run >= table.limit:
            table.all_river()
            return None
        # From one layer before the first decision on, states are kept for comparison.
        if layers_run + 1 < table.first:
            return None
        values = None
        if table.measured:
            before = table.states if layers_run >= table.first else None
            table.states, values = self._read(before, *table.active_rows(hidden, residual))
            if values is not None:
                values = self.agreed(values)
        leave = table.leaving(layers_run, None if values is None else values.cpu().numpy())
        if leave is not None:
            table.leave(leave, layers_run)
        return values
