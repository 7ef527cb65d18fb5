"""Checks that a 4-bit weight was made from this backbone's, and finds the scales of its features.

AWQ and its like multiply the weight of each input feature by a scale, and divide the norm or the
projection before it by the same. The river shares its norms with the backbone, so it has to undo
that: the scales of the inputs are applied to the activations, those of the outputs are folded into
the groups' own. A checkpoint does not hold them, so both are found by comparing the two weights, by
alternating least squares of ``Ŵ ≈ W / (outputs ⊗ inputs)``. The 4-bit weight Ŵ, which has the
errors, is on the left: the scales of features that 4 bits hold badly would otherwise come out too
small.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from river_vllm.errors import RiverError
from river_vllm.quantization.groups import GroupedWeight

TOLERANCE = 0.35
"""Largest relative error that is taken; 4 bits make 0.05 to 0.2, another model's weight about 1."""
EXACT = 0.02
"""Relative error below which there is nothing to scale."""
GAIN = 0.8
"""Scales are used where they bring the error below this share of what it was. In a weight that was
not scaled they can only fit the rounding errors, which wins a few per cent."""
ROUNDS = 4
SAMPLE = 512
"""Outputs that are compared at first, to decide whether there are scales."""


def matched(weight: GroupedWeight, backbone: torch.Tensor) -> GroupedWeight:
    """``weight`` with the scales that make it a quantisation of ``backbone`` ``[N, K]``.

    Raises:
        RiverError: it is not one, whatever the scales.
    """
    step = -(-backbone.shape[0] // SAMPLE)
    rows = slice(None, None, step)
    sample = weight.rows(rows)
    error = _error(sample.dequantize(), backbone[rows].float())
    fitted = _scales(sample, backbone[rows])[2]
    if not min(error, fitted) <= TOLERANCE:
        raise RiverError(
            f"differs by {error:.0%} from the backbone's weight: it was made from another model"
        )
    if error < EXACT or fitted > GAIN * error:
        return weight
    outputs, inputs, _ = _scales(weight, backbone)
    scales = (weight.scales * outputs.unsqueeze(-1)).bfloat16().float()
    return replace(weight, scales=scales, input_scales=inputs)


def _scales(
    weight: GroupedWeight, backbone: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Best scales of outputs ``[N]`` and inputs ``[K]``, and the relative error with them."""
    ours, theirs = weight.dequantize(), backbone.float()
    product, square = ours * theirs, theirs.square()
    # One over the scales.
    rows, columns = theirs.new_ones(theirs.shape[0]), theirs.new_ones(theirs.shape[1])
    for _ in range(ROUNDS):
        columns = _ratio(rows @ product, rows.square() @ square)
        rows = _ratio(product @ columns, square @ columns.square())
    outputs, inputs = 1 / rows, 1 / columns
    return outputs, inputs, _error(outputs.unsqueeze(-1) * ours * inputs, theirs)


def _error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Norm of the difference, relative to that of the backbone's weight."""
    return float((ours - theirs).norm()) / (float(theirs.norm()) or 1.0)


def _ratio(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """``above / below``; 1 where that is not positive, or nothing is known."""
    return torch.where((below > 0) & (above > 0), above / below, 1.0)
