"""Extension of a stock vLLM worker for ``river-vllm quantize`` (``worker_extension_cls``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from river_vllm.errors import RiverError
from river_vllm.model.attach import decoder_layers, projections
from river_vllm.weights.formats import CheckpointFolder, own_tensors, scaled
from river_vllm.weights.gptq import HessianRecorder, block_widths, output_power, quantize_gptq
from river_vllm.weights.quantizers import fitting_group_size
from river_vllm.weights.shards import Part, parts_of

ERROR_ROWS = 128
"""Outputs of each projection from which the error is estimated."""
PLAIN = (torch.bfloat16, torch.float16, torch.float32)
"""Types of weights that need no scales."""


class QuantizeExtension:
    """RPC methods; vLLM adds this class to the worker's bases.

    The bf16 weights come from the checkpoint's files: vLLM's CPU build keeps its own form only.
    """

    model_runner: Any
    vllm_config: Any
    _river_hessians: HessianRecorder

    def river_hessian_bytes(self) -> list[int]:
        """Memory that the Hessians of each decoder layer's projections take."""
        found = [projections(layer) for layer in self._river_layers()]
        widths = [[w for _, linear in p for w in block_widths(linear.input_size)] for p in found]
        return [4 * sum(width**2 for width in layer) for layer in widths]

    def river_record_hessians(self, layers: list[int]) -> None:
        """From now on, take the Hessians of these layers' projections."""
        found = self._river_layers()
        modules = {m.prefix: m for index in layers for _, m in projections(found[index])}
        self._river_hessians = HessianRecorder(modules)

    def river_quantize_layer(
        self, layer: int, checkpoint: str, out: str, group_size: int, integer_zeros: bool
    ) -> dict[str, Any]:
        """Quantise one of the recorded layers, and write its file to the folder ``out``.

        Args:
            checkpoint: folder of the bf16 weights.
            group_size: the largest wanted.

        Returns:
            ``tokens``, the number recorded, and ``output_error``: the root mean square error of the
            projections' outputs, relative to the outputs.
        """
        hessians = self._river_hessians
        hessians.close()
        folder = CheckpointFolder(Path(checkpoint))
        packed_modules = getattr(self.model_runner.get_model(), "packed_modules_mapping", {})
        tensors: dict[str, torch.Tensor] = {}
        error = power = 0.0
        for _, linear in projections(self._river_layers()[layer]):
            hessian = hessians.take(linear.prefix)
            parts = parts_of(linear, packed_modules)
            # At once: the projections that vLLM fuses have the same inputs, so the same Hessian.
            weight = torch.cat([_weight(folder, part) for part in parts])
            fitting = fitting_group_size(linear.input_size, group_size)
            made = quantize_gptq(weight, fitting, hessian, integer_zeros)
            start = 0
            for part in parts:
                stop = start + part.shape[0]
                tensors |= own_tensors(part.name, made.rows(slice(start, stop)))
                start = stop
            rows = slice(None, None, max(1, len(weight) // ERROR_ROWS))
            wanted = weight[rows].float()
            error += output_power(made.rows(rows).dequantize() - wanted, hessian)
            power += output_power(wanted, hessian)
        save_file(tensors, Path(out) / f"layer-{layer:04d}.safetensors")
        relative = (error / power) ** 0.5 if power else 0.0
        return {"tokens": hessians.tokens, "output_error": relative}

    def _river_layers(self) -> list[Any]:
        number = self.vllm_config.model_config.get_total_num_hidden_layers()
        return decoder_layers(self.model_runner.get_model(), number)


def _weight(folder: CheckpointFolder, part: Part) -> torch.Tensor:
    """A projection's weight; of an INT8 checkpoint, its codes times their scales."""
    name = f"{part.name}.weight"
    weight = folder.get(name)
    if tuple(weight.shape) != part.shape:
        raise RiverError(f"{folder.place(name)}: unexpected shape")
    if weight.dtype is torch.int8:
        return scaled(weight, folder.get(f"{name}_scale"), torch.bfloat16)
    if weight.dtype not in PLAIN:
        raise RiverError(f"{folder.place(name)}: {weight.dtype} (taken: bf16, fp16, fp32, INT8)")
    return weight
