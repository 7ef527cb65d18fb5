"""4-bit products that are not River's: torch's, vLLM's, and a bf16 one of the expanded weight."""

from __future__ import annotations

import torch
from torch.nn.functional import linear

from river_vllm.compat import (
    CompressedTensorsWNA16,
    CPUWNA16LinearKernel,
    default_weight_loader,
    pack_quantized_values_into_int32,
    scalar_types,
    vllm_envs,
)
from river_vllm.kernels.base import Int4Kernel, LinearSpec, PackedLinear, not_for_cpu_bf16
from river_vllm.kernels.groups import GroupedWeight

_MIDDLE = 8
"""torch computes ``(code − 8) · scale + offset``."""
_INNER_K_TILES = 2
_LANES = 16
_PACKED = 8
"""Zero points of so many outputs share an int32."""
_OPERATORS = ("_convert_weight_to_int4pack_for_cpu", "_weight_int4pack_mm_for_cpu")


class TorchInt4Kernel(Int4Kernel):
    """``aten::_weight_int4pack_mm_for_cpu``: for a few rows, where River's library is not built."""

    name = "torch"
    integer_zeros = False

    def unsupported(self, spec: LinearSpec) -> str | None:
        if not all(hasattr(torch.ops.aten, name) for name in _OPERATORS):
            return "this build of torch has no 4-bit product for CPUs"
        return not_for_cpu_bf16(spec, _LANES)

    def pack(self, weight: GroupedWeight, spec: LinearSpec) -> PackedLinear:
        codes = weight.codes.to(torch.int32).contiguous()
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, _INNER_K_TILES)
        offsets = (_MIDDLE - weight.zeros) * weight.scales
        scales_and_zeros = torch.stack([weight.scales.t(), offsets.t()], dim=-1).to(spec.dtype)
        return _TorchPacked(packed, scales_and_zeros.contiguous(), weight.group_size)


class _TorchPacked(PackedLinear):
    def __init__(self, packed: torch.Tensor, scales_and_zeros: torch.Tensor, group: int) -> None:
        self._packed = packed
        self._scales_and_zeros = scales_and_zeros
        self._group = group

    def apply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.contiguous(), self._packed, self._group, self._scales_and_zeros
        )
        return out if bias is None else out.add_(bias)

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes + self._scales_and_zeros.nbytes


class VllmMixedPrecisionKernel(Int4Kernel):
    """The kernel that ``choose_mp_linear_kernel`` picks here, through vLLM's own scheme: Marlin and
    Machete on CUDA, WNA16 on the CPU.

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
        if spec.out_features % _PACKED:
            return f"output features must be a multiple of {_PACKED}, got {spec.out_features}"
        try:
            scheme, _ = _empty(spec, torch.device("meta"))
        except (ValueError, RuntimeError) as error:
            return " ".join(str(error).split())
        # The rule of vLLM's kernel, which applies it while it repacks.
        rounds = (
            isinstance(scheme.kernel, CPUWNA16LinearKernel)
            and bool(vllm_envs.VLLM_CPU_INT4_W4A8)
            and spec.dtype == torch.bfloat16
            and torch.cpu._is_amx_tile_supported()
        )
        if rounds != self.rounds_activations:
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
        return _VllmPacked(scheme, host)


class _VllmPacked(PackedLinear):
    def __init__(self, scheme: CompressedTensorsWNA16, host: torch.nn.Module) -> None:
        self._scheme = scheme
        self._host = host

    def apply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        # Marlin takes a bias in its own order only, and the AMX kernel one in float32.
        out = self._scheme.apply_weights(self._host, x, None)
        return out if bias is None else out.add_(bias)

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self._host.parameters())


def _empty(
    spec: LinearSpec, device: torch.device
) -> tuple[CompressedTensorsWNA16, torch.nn.Module]:
    """vLLM's W4A16 scheme, and a module with its parameters, not filled in.

    vLLM checks a shape only while it makes them; on the ``meta`` device they take no memory.
    """
    host = torch.nn.Module()
    host.bias = None  # read by some kernels while they repack
    group = spec.group_size
    scheme = CompressedTensorsWNA16("group", 4, group, symmetric=False, layer_name="river")
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


class DequantizeKernel(Int4Kernel):
    """``x @ ((codes − zeros) · scales)``, the weight rounded to the activations' type.

    For steps of many rows. The other kernels are made for a few rows, for which reading the weight
    takes most of the time. For hundreds of rows arithmetic does, in which a bf16 product is several
    times as fast. A code takes a byte here.
    """

    name = "dequantize"
    integer_zeros = False

    def unsupported(self, spec: LinearSpec) -> str | None:
        return None

    def pack(self, weight: GroupedWeight, spec: LinearSpec) -> PackedLinear:
        return _Expanded(weight, spec.dtype)


class _Expanded(PackedLinear):
    def __init__(self, weight: GroupedWeight, dtype: torch.dtype) -> None:
        out_features, in_features = weight.codes.shape
        self._codes = weight.codes.view(out_features, -1, weight.group_size)
        self._shape = (out_features, in_features)
        # For one ``addcmul``, which computes in float32 and rounds once.
        self._scales = weight.scales.to(dtype).unsqueeze(-1)
        self._offsets = (-weight.zeros * weight.scales).to(dtype).unsqueeze(-1)

    def apply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        codes = self._codes.to(self._scales.dtype)
        weight = torch.addcmul(self._offsets, codes, self._scales).view(self._shape)
        return linear(x, weight, bias)

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes + self._scales.nbytes + self._offsets.nbytes
