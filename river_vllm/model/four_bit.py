"""A checkpoint's own 4-bit weights as the backbone: River's product in place of vLLM's.

vLLM chooses a kernel for each 4-bit projection from a list (``kernels/linear/__init__.py``,
``choose_mp_linear_kernel``). On the CPU, for an engine with a river, this one comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from river_vllm.compat import (
    MPLinearKernel,
    MPLinearLayerConfig,
    get_current_vllm_config_or_none,
    scalar_types,
)
from river_vllm.config import river_config_of, serves_river
from river_vllm.kernels.base import LinearSpec, PackedLinear
from river_vllm.kernels.choice import KernelChooser
from river_vllm.kernels.groups import GroupedWeight
from river_vllm.weights.formats import grouped, unpack
from river_vllm.weights.quantizers import fitting_group_size
from river_vllm.weights.source import LARGEST


class RiverWNA16LinearKernel(MPLinearKernel):
    """4-bit weights with bf16 activations and sums in float32.

    A row's result does not depend on the other rows of a pass, where ``kernels/native`` runs.
    """

    pack: Callable[[GroupedWeight, LinearSpec], PackedLinear]
    """Brings the weight into a kernel's layout; set before the weights are loaded."""
    packed: PackedLinear
    """The only copy of the weight, once it is loaded."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        vllm_config = get_current_vllm_config_or_none()
        if vllm_config is None or vllm_config.model_config is None:
            return False, "for engines with a model"
        if not serves_river(vllm_config):
            return False, "for engines that serve a river"
        config = river_config_of(vllm_config)
        if not config.in_4_bit:
            return False, "for checkpoints in 4 bit"
        if c.weight_type not in (scalar_types.uint4, scalar_types.uint4b8):
            return False, f"takes 4-bit weights, not {c.weight_type}"
        reason = KernelChooser(config.kernel).refusal(_spec(c))
        return reason is None, reason

    @property
    def out_features(self) -> int:
        """N of this rank's weight."""
        return self.config.partition_weight_shape[1]

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Pack the weight of ``layer`` and free its parameters.

        Raises:
            RiverError: the tensors do not go together, or a scale is not a finite number.
        """
        self.packed = self.pack(self._grouped(layer), _spec(self.config))
        for name in (self.w_q_name, self.w_s_name, self.w_zp_name):
            if name is not None and (held := getattr(layer, name, None)) is not None:
                setattr(layer, name, nn.Parameter(held.data.new_empty(0), requires_grad=False))

    def apply_weights(
        self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``x [..., K] -> [..., N]``."""
        return self.packed.apply(x.flatten(0, -2), bias).view(*x.shape[:-1], -1)

    def _grouped(self, layer: nn.Module) -> GroupedWeight:
        """The weight ``[N, K]``, in groups of at most ``LARGEST``.

        compressed-tensors keeps ``[N, K / 8]``, GPTQ ``[K / 8, N]``; vLLM has brought AWQ's into
        the latter form (``mixed_precision/cpu.py``, ``process_weights_after_loading``).
        """
        parameters: Any = self._get_weight_params(layer)
        packed, scales, zeros = parameters
        codes = unpack(packed.data, packed.input_dim)
        scale = scales.data.float()
        codes = codes if packed.input_dim == 1 else codes.t()
        scale = scale if scales.output_dim == 0 else scale.t()
        if self.config.zero_points:
            zero = unpack(zeros.data, zeros.output_dim).float()
            zero = zero if zeros.output_dim == 0 else zero.t()
        else:
            zero = torch.full_like(scale, float(self.config.weight_type.bias))
        out_features, in_features = self.out_features, self.config.partition_weight_shape[0]
        place = f"the checkpoint's '{self.w_q_name}' of projection '{getattr(layer, 'prefix', '')}'"
        whole = grouped(place, codes[:out_features, :in_features], scale, zero[:out_features])
        return whole.regrouped(_spec(self.config).group_size)


def kernel_of(method: object, layer: nn.Module) -> RiverWNA16LinearKernel | None:
    """River's kernel below vLLM's method for a projection; None where another one is."""
    kernel = getattr(getattr(layer, "scheme", method), "kernel", None)
    return kernel if isinstance(kernel, RiverWNA16LinearKernel) else None


def _spec(c: MPLinearLayerConfig) -> LinearSpec:
    in_features, out_features = c.partition_weight_shape
    stored = in_features if c.group_size == -1 else c.group_size
    group_size = stored if stored < LARGEST else fitting_group_size(stored, LARGEST)
    return LinearSpec(in_features, out_features, group_size, c.act_type, torch.device("cpu"))
