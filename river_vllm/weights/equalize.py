"""Whether a 4-bit weight is a quantisation of this backbone's, and of which scaling of it.

AWQ and its like multiply the inputs of a projection by one factor for each feature, and divide the
norm or the projection before it by the same. The river shares its norms with the backbone, so it
has to undo that: factors of the inputs are applied to the activations, factors of the outputs are
folded into the scales. River's own files say what the factors are; elsewhere both are found by
comparing the two weights: alternating least squares of ``Ŵ ≈ W / (outputs ⊗ inputs)``. The 4-bit
weight, which has the errors, is on the left: factors of features that 4 bits hold badly would
otherwise come out too small.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from river_vllm.errors import RiverError
from river_vllm.quantization.groups import GroupedWeight

TOLERANCE = 0.35
"""Relative error of a weight; 4 bits make 0.05 to 0.2, another model's weight about 1."""
EXACT = 0.02
"""Relative error that leaves nothing to scale."""
GAIN = 0.8
"""Factors are used where they bring the error below this part of what it was: without scaling
they can only fit the rounding, a few per cent of it."""
ROUNDS = 4
SAMPLE = 512
"""Rows that decide."""


def matched(weight: GroupedWeight, backbone: torch.Tensor) -> GroupedWeight:
    """``weight`` with the factors that make it a quantisation of ``backbone`` ``[N, K]``.

    Raises:
        RiverError: it is not one.
    """
    step = -(-backbone.shape[0] // SAMPLE)
    rows = slice(None, None, step)
    sample = weight.rows(rows)
    error = _error(sample.dequantize(), backbone[rows].float())
    # Factors that are known are not looked for.
    fitted = error if weight.inputs is not None else _factors(sample, backbone[rows])[2]
    if min(error, fitted) > TOLERANCE:
        raise RiverError(
            f"differs by {error:.0%} from the backbone's weight: it was made from another model"
        )
    if error < EXACT or fitted > GAIN * error:
        return weight
    outputs, inputs, _ = _factors(weight, backbone)
    scales = (weight.scales * outputs.unsqueeze(-1)).bfloat16().float()
    return replace(weight, scales=scales, inputs=inputs)


def _factors(
    weight: GroupedWeight, backbone: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Best factors of outputs ``[N]`` and inputs ``[K]``, and the relative error with them."""
    ours, theirs = weight.dequantize(), backbone.float()
    product, square = ours * theirs, theirs.square()
    # One over the factors.
    rows, columns = theirs.new_ones(theirs.shape[0]), theirs.new_ones(theirs.shape[1])
    for _ in range(ROUNDS):
        columns = _ratio(rows @ product, rows.square() @ square)
        rows = _ratio(product @ columns, square @ columns.square())
    outputs, inputs = 1 / rows, 1 / columns
    return outputs, inputs, _error(outputs.unsqueeze(-1) * ours * inputs, theirs)


def _error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative to the backbone's weight."""
    return float((ours - theirs).norm()) / (float(theirs.norm()) or 1.0)


def _ratio(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """Factors; 1 where there is nothing to scale, and none negative."""
    return torch.where((below > 0) & (above > 0), above / below, 1.0)
