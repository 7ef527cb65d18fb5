"""vLLM's mixed-precision kernels: Marlin and Machete on CUDA, WNA16 on the CPU."""

from __future__ import annotations

import torch

from river_vllm.compat import (
    CompressedTensorsWNA16,
    CPUWNA16LinearKernel,
    default_weight_loader,
    pack_quantized_values_into_int32,
    scalar_types,
    vllm_envs,
)
from river_vllm.kernels.base import Int4Kernel, LinearSpec, PackedLinear
from river_vllm.kernels.groups import GroupedWeight


class VllmMixedPrecisionKernel(Int4Kernel):
    """The kernel that ``choose_mp_linear_kernel`` picks here, through vLLM's own scheme.

    On CPUs with AMX vLLM's kernel rounds the activations to 8 bits unless
    ``VLLM_CPU_INT4_W4A8=0`` (``kernels/linear/mixed_precision/cpu.py``), so it serves one of
    River's two ``activations`` settings, never both.

    Args:
        int8: True: serve only where activations are rounded to 8 bits; False: only where not.
    """

    name = "vllm"
    integer_zeros = True

    def __init__(self, int8: bool = False) -> None:
        self.rounds_activations = int8

    def unsupported(self, spec: LinearSpec) -> str | None:
        if spec.device.type == "cpu" and not has_cpu_int4_product():
            return "this build of vLLM has no 4-bit product for this CPU"
        try:
            scheme, _ = _empty(spec, torch.device("meta"))
        except (ValueError, RuntimeError) as error:
            return " ".join(str(error).split())
        if rounds_activations(scheme, spec.dtype) != self.rounds_activations:
            bits = "16" if self.rounds_activations else "8"
            return f"vLLM's kernel takes {bits}-bit activations here (VLLM_CPU_INT4_W4A8)"
        return None

    def pack(self, weight: GroupedWeight, spec: LinearSpec) -> PackedLinear:
        scheme, host = _empty(spec, spec.device)
        codes = weight.codes.to(spec.device, torch.int32)
        zeros = weight.zeros.to(spec.device, torch.int32)
        host.weight_packed.data.copy_(pack_int4_into_int32(codes, 1))
        host.weight_scale.data.copy_(weight.scales)
        host.weight_zero_point.data.copy_(pack_int4_into_int32(zeros, 0))
        scheme.process_weights_after_loading(host)
        return _VllmPacked(scheme, host, torch.float32 if self.rounds_activations else spec.dtype)


class _VllmPacked(PackedLinear):
    def __init__(
        self, scheme: CompressedTensorsWNA16, host: torch.nn.Module, bias_dtype: torch.dtype
    ) -> None:
        self._scheme = scheme
        self._host = host
        self._bias_dtype = bias_dtype

    def apply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if bias is not None:
            bias = bias.to(self._bias_dtype)
        return self._scheme.apply_weights(self._host, x, bias)

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self._host.parameters())


def _empty(
    spec: LinearSpec, device: torch.device
) -> tuple[CompressedTensorsWNA16, torch.nn.Module]:
    """vLLM's W4A16 scheme, and a module with its parameters, not filled in.

    vLLM checks a shape only while it makes them; on the ``meta`` device they take no memory.

    Raises:
        ValueError: no kernel of this platform takes the shape.
    """
    host = torch.nn.Module()
    host.bias = None  # read by some kernels while they repack
    scheme = CompressedTensorsWNA16(
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
            weight_loader=default_weight_loader,
        )
    return scheme, host


def pack_int4_into_int32(codes: torch.Tensor, dim: int) -> torch.Tensor:
    """Eight codes 0…15 per int32 along ``dim``, low bits first (vLLM's checkpoint layout)."""
    return pack_quantized_values_into_int32(codes, scalar_types.uint4, packed_dim=dim)


def has_cpu_int4_product() -> bool:
    """Whether the kernel library that vLLM has loaded for this CPU holds its 4-bit product.

    The AVX2 library does not (vLLM issue 55613), and vLLM's choice of a kernel does not check.
    """
    return hasattr(torch.ops._C, "cpu_gemm_wna16")


def rounds_activations(scheme: CompressedTensorsWNA16, dtype: torch.dtype) -> bool:
    """Whether the scheme's kernel will take activations of ``dtype`` rounded to 8 bits.

    The rule of ``kernels/linear/mixed_precision/cpu.py``, which applies it while it repacks.
    """
    return (
        isinstance(scheme.kernel, CPUWNA16LinearKernel)
        and bool(vllm_envs.VLLM_CPU_INT4_W4A8)
        and dtype == torch.bfloat16
        and torch.cpu._is_amx_tile_supported()
    )
