"""GPTQ: codes that compensate each other's errors on the inputs of a calibration text.

Algorithm 1 of Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers" (ICLR 2023). Features are in the order of falling Hessian diagonal. Scales
and zero points of the groups are fixed beforehand (``quantize_fit``), so the stored weight needs no
permutation (``act_order`` with ``static_groups`` in the authors' code).

The Hessian is that of a projection's squared output error. For a row ``w`` of the weight and inputs
``x`` the error is the mean of ``((w − ŵ) · x)²``. Its second derivative by ``ŵ`` is twice the mean
of ``x xᵀ``, the same for every row (equations 1 and 2). The factor of two changes no code and is
left out. Of wide inputs only diagonal blocks are kept, and each is worked on by itself: the memory
of a Hessian grows with the square of the width, and GPTQ's time with its cube.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from river_vllm.kernels.groups import (
    LEVELS,
    GroupedWeight,
    by_blocks,
    concatenate,
    finish,
    min_max_grid,
)

WIDEST = 5120
"""Input features of the largest block of a Hessian."""
MULTIPLE = 128
"""Blocks begin where the groups of a weight do."""
DAMPING = 0.01
"""Added to the Hessian's diagonal, as a share of its mean (the authors' ``percdamp``)."""
AT_ONCE = 128
"""Features whose errors are passed on to later features together, as one matrix product."""
CLIPS = (1.0, 0.92, 0.84, 0.76, 0.68)
"""Shares of a group's range from which a fit starts."""
STEPS = 6
"""Steps of a fit from each of them."""


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
    pairs = zip(_columns(weight, hessian), hessian, strict=True)
    return concatenate([_block(*pair, group_size, integer_zeros) for pair in pairs], dim=1)


def quantize_fit(
    weight: torch.Tensor, group_size: int, integer_zeros: bool, importance: torch.Tensor
) -> GroupedWeight:
    """Quantise ``weight`` ``[N, K]``, with scales and zero points by weighted least squares.

    Each group starts from several clipped ranges and alternates nearest codes with the
    least-squares scale and zero point of those codes, which have a closed form. Weighted by each
    input's mean square, the diagonal of the Hessian, errors are the output's if the inputs'
    features do not correlate. No group's error is above its min-max error.

    Args:
        integer_zeros: round every zero point to an integer.
        importance: weight of each input feature's squared error, float ``[K]``.
    """
    # Only ratios within a group matter; where all of a group are zero, its features count equally.
    features = importance.float().view(1, -1, group_size)
    features = features / features.mean(dim=-1, keepdim=True).clamp(min=1e-30)
    features = torch.where(features.sum(dim=-1, keepdim=True) > 0, features, 1.0)
    return by_blocks(weight, lambda block: _fit(block, features, group_size, integer_zeros))


def block_widths(features: int) -> list[int]:
    """Widths, about equal, of the diagonal blocks of a Hessian over ``features`` inputs."""
    count = -(-features // WIDEST)
    step = -(-features // (count * MULTIPLE)) * MULTIPLE
    return [min(step, features - start) for start in range(0, features, step)]


def output_power(weight: torch.Tensor, hessian: Sequence[torch.Tensor]) -> float:
    """Mean square of the outputs of ``weight``, or of their error, if it is the error of a weight:
    the sum over the N outputs.

    Args:
        weight: float32 ``[N, K]``.
        hessian: diagonal blocks, float32, over all K inputs.
    """
    pairs = zip(_columns(weight, hessian), hessian, strict=True)
    return sum(float(((part @ block) * part).sum()) for part, block in pairs)


class HessianRecorder:
    """Sums ``x xᵀ`` over every token that the named modules see, until it is closed.

    The first argument of each module is ``x [tokens, K]``.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._sums: dict[str, list[torch.Tensor]] = {}
        self._tokens: dict[str, int] = dict.fromkeys(modules, 0)
        self._hooks = [
            module.register_forward_pre_hook(partial(self._add, name))
            for name, module in modules.items()
        ]

    @property
    def tokens(self) -> int:
        """Tokens seen by the module that has seen the fewest."""
        return min(self._tokens.values())

    def close(self) -> None:
        """Stop recording."""
        for hook in self._hooks:
            hook.remove()

    def take(self, name: str) -> list[torch.Tensor]:
        """A module's Hessian: its diagonal blocks, float32. Once only, to free their memory."""
        return [block / self._tokens[name] for block in self._sums.pop(name)]

    def _add(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].flatten(0, -2).float()
        parts = x.split(block_widths(x.shape[1]), dim=1)
        if name not in self._sums:
            self._sums[name] = [x.new_zeros(part.shape[1], part.shape[1]) for part in parts]
        matmul: Any = torch.backends.mkldnn.matmul
        before = matmul.fp32_precision
        if args[0].dtype == torch.bfloat16:
            # Sums stay float32, so nothing is lost, and it takes half the time.
            matmul.fp32_precision = "bf16"
        try:
            for total, part in zip(self._sums[name], parts, strict=True):
                total += part.t() @ part
        finally:
            matmul.fp32_precision = before
        self._tokens[name] += x.shape[0]


def _columns(weight: torch.Tensor, hessian: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """The parts of ``weight`` ``[N, K]`` that belong to the blocks of the Hessian."""
    return weight.split([len(block) for block in hessian], dim=1)


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
    for start in range(0, left.shape[0], AT_ONCE):
        stop = min(start + AT_ONCE, left.shape[0])
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
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def _fit(
    weight: torch.Tensor, importance: torch.Tensor, group_size: int, integer_zeros: bool
) -> GroupedWeight:
    groups, full_scales, full_zeros = min_max_grid(weight, group_size)
    best_scales, best_zeros = full_scales, full_zeros
    best_error = torch.full_like(full_scales, torch.inf)
    total = importance.sum(dim=-1, keepdim=True)
    mean_weight = (importance * groups).sum(dim=-1, keepdim=True) / total
    for clip in CLIPS:
        scales = (full_scales * clip).bfloat16().float()
        zeros = full_zeros
        for _ in range(STEPS):
            codes = (groups / scales).add_(zeros).round_().clamp_(0, LEVELS)
            missed = (codes - zeros).mul_(scales).sub_(groups)
            error = missed.square_().mul_(importance).sum(dim=-1, keepdim=True)
            better = error < best_error
            best_scales = torch.where(better, scales, best_scales)
            best_zeros = torch.where(better, zeros, best_zeros)
            best_error = torch.where(better, error, best_error)
            # Weighted least squares of w = scale · code + offset.
            mean_code = (importance * codes).sum(dim=-1, keepdim=True) / total
            centred = codes - mean_code
            spread = (importance * centred.square()).sum(dim=-1, keepdim=True)
            slope = (importance * centred).mul_(groups).sum(dim=-1, keepdim=True) / spread
            usable = (spread > 0) & (slope > 1e-8)
            scales = torch.where(usable, slope, scales).bfloat16().float()
            zeros = mean_code - mean_weight / scales
            if integer_zeros:
                zeros = zeros.round_().clamp_(0, LEVELS)
    codes = (groups / best_scales).add_(best_zeros).round_().clamp_(0, LEVELS)
    return finish(codes, best_scales, best_zeros)
