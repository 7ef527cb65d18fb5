"""vLLM's mixed-precision kernels: Marlin and Machete on CUDA, WNA16 and zentorch on the CPU."""

from __future__ import annotations

import torch

from river_vllm import compat
from river_vllm.kernels.base import Int4Kernel, LinearSpec, PackedLinear
from river_vllm.quantization.groups import GroupedWeight


class VllmMixedPrecisionKernel(Int4Kernel):
    """Whatever ``choose_mp_linear_kernel`` picks for the platform, held by vLLM's own scheme."""

    name = "vllm"
    whole_zeros = True

    def unsupported(self, spec: LinearSpec) -> str | None:
        try:
            _empty(spec, torch.device("meta"))
        except (ValueError, RuntimeError) as error:
            return " ".join(str(error).split())
        return None

    def pack(self, weight: GroupedWeight, spec: LinearSpec) -> PackedLinear:
        scheme, host = _empty(spec, spec.device)
        codes = weight.codes.to(spec.device, torch.int32)
        zeros = weight.zeros.to(spec.device, torch.int32)
        pack = compat.pack_int4_into_int32
        host.weight_packed.data.copy_(pack(codes, 1))
        host.weight_scale.data.copy_(weight.scales)
        host.weight_zero_point.data.copy_(pack(zeros, 0))
        scheme.process_weights_after_loading(host)
        return _VllmPacked(scheme, host)


class _VllmPacked(PackedLinear):
    def __init__(self, scheme: compat.CompressedTensorsWNA16, host: torch.nn.Module) -> None:
        self._scheme = scheme
        self._host = host

    def apply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self._scheme.apply_weights(self._host, x, bias)

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self._host.parameters())


def _empty(
    spec: LinearSpec, device: torch.device
) -> tuple[compat.CompressedTensorsWNA16, torch.nn.Module]:
    """vLLM's W4A16 scheme with its empty parameters in a module of its own.

    Making them is vLLM's only check of a shape; on the ``meta`` device it costs no memory.

    Raises:
        ValueError: no kernel of this platform takes the shape.
    """
    host = torch.nn.Module()
    host.bias = None  # read by some kernels while they repack
    scheme = compat.CompressedTensorsWNA16(
        "group", 4, spec.group_size, symmetric=False, layer_name="river"
    )
    with device:
        scheme.create_weights(
            host,
            output_size=spec.out_features,
            input_size=spec.in_features,
            output_partition_sizes=[spec.out_features],
            input_size_per_partition=spec.in_features,
            params_dtype=spec.dtype,
            weight_loader=compat.default_weight_loader,
        )
    return scheme, host
