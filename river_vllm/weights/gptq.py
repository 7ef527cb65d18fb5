"""GPTQ: codes that compensate each other's errors on the inputs of a calibration text.

Algorithm 1 of Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers" (ICLR 2023). Features are in the order of falling Hessian diagonal. Scales
and zero points of the groups are fixed beforehand, so the stored weight needs no permutation
(``act_order`` with ``static_groups`` in the authors' code). Each diagonal block of the Hessian is
worked on by itself (``hessian.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from river_vllm.kernels.groups import LEVELS, GroupedWeight
from river_vllm.weights.fit import quantize_fit

DAMPING = 0.01
"""Added to the Hessian's diagonal, as a share of its mean (the authors' ``percdamp``)."""
BLOCK = 128
"""Features whose errors are passed on to later features together, as one matrix product."""


def quantize_gptq(
    weight: torch.Tensor,
    group_size: int,
    hessian: Sequence[torch.Tensor],
    integer_zeros: bool = False,
) -> GroupedWeight:
    """Quantise ``weight`` ``[N, K]`` for the inputs from which the Hessian was taken.

    Args:
        hessian: diagonal blocks, float32, over all K inputs. Not changed.
        integer_zeros: round every zero point to an integer.
    """
    columns = weight.split([len(block) for block in hessian], dim=1)
    made = [_block(*pair, group_size, integer_zeros) for pair in zip(columns, hessian, strict=True)]
    return GroupedWeight(
        torch.cat([part.codes for part in made], dim=1),
        torch.cat([part.scales for part in made], dim=1),
        torch.cat([part.zeros for part in made], dim=1),
    )


def _block(
    weight: torch.Tensor, hessian: torch.Tensor, group_size: int, integer_zeros: bool
) -> GroupedWeight:
    diagonal = hessian.diagonal()
    grid = quantize_fit(weight, group_size, integer_zeros, diagonal)
    order = diagonal.argsort(descending=True)
    inverse = _inverse_factor(hessian, order)
    group_of = order // group_size
    # Transposed: a feature's column of the weight is then contiguous.
    scales = grid.scales.t()[group_of].contiguous()
    zeros = grid.zeros.t()[group_of].contiguous()
    left = weight.float().t()[order].contiguous()
    codes = torch.empty_like(left, dtype=torch.uint8)
    for start in range(0, left.shape[0], BLOCK):
        stop = min(start + BLOCK, left.shape[0])
        block = left[start:stop]
        errors = torch.empty_like(block)
        for row in range(stop - start):
            feature = start + row
            scale, zero = scales[feature], zeros[feature]
            code = (block[row] / scale).add_(zero).round_().clamp_(0, LEVELS)
            codes[feature] = code
            error = code.sub_(zero).mul_(scale).sub_(block[row]).neg_()
            errors[row] = error.div_(inverse[feature, feature])
            block[row + 1 :].addr_(inverse[feature, feature + 1 : stop], errors[row], alpha=-1)
        left[stop:].addmm_(inverse[start:stop, stop:].t(), errors, alpha=-1)
    restored = torch.empty_like(codes)
    restored[order] = codes
    return GroupedWeight(restored.t().contiguous(), grid.scales, grid.zeros)


def _inverse_factor(hessian: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the damped Hessian's inverse, features in ``order``."""
    damped = hessian[order][:, order]
    mean = damped.diagonal().mean()
    damped.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)
    factor = torch.linalg.cholesky(damped)
    inverse = torch.cholesky_inverse(factor)
    return torch.linalg.cholesky(inverse, upper=True)
