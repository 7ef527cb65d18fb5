"""What ``river-vllm quantize`` asks of a stock vLLM worker (``worker_extension_cls``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from river_vllm.errors import RiverError
from river_vllm.layers.find import decoder_layers, projections
from river_vllm.quantization import CALIBRATED, fitting_group_size
from river_vllm.quantization.moments import InputMoments, parts_of_width, product_power
from river_vllm.weights.formats.own import own_tensors
from river_vllm.weights.shards import Part, parts_of
from river_vllm.weights.tensors import CheckpointFolder

ERROR_ROWS = 128
"""Outputs of each projection from which the error is estimated."""


class QuantizeExtension:
    """RPC methods; vLLM adds this class to the worker's bases.

    The bf16 weights come from the checkpoint's files: vLLM's CPU build keeps its own form only.
    """

    model_runner: Any
    vllm_config: Any
    _river_moments: InputMoments

    def river_layer_bytes(self) -> list[int]:
        """Memory that the moments of each decoder layer's inputs take."""
        return [
            sum(
                4 * sum(width**2 for width in parts_of_width(linear.input_size))
                for _, linear in projections(layer)
            )
            for layer in self._river_layers()
        ]

    def river_listen(self, layers: list[int]) -> None:
        """Gather the inputs of these layers' projections from now on."""
        found = self._river_layers()
        modules = {m.prefix: m for index in layers for _, m in projections(found[index])}
        self._river_moments = InputMoments(modules)

    def river_quantize_layer(
        self, layer: int, checkpoint: str, out: str, settings: dict[str, Any]
    ) -> dict[str, Any]:
        """Quantise one of the layers listened to, and write its file; tokens and errors.

        Args:
            checkpoint: folder of the bf16 weights. out: folder to write to.
            settings: ``quantizer``, ``group_size`` (the largest), ``whole_zeros``.
        """
        moments = self._river_moments
        moments.close()
        folder = CheckpointFolder(Path(checkpoint))
        quantize = CALIBRATED[settings["quantizer"]]
        packed_modules = getattr(self.model_runner.get_model(), "packed_modules_mapping", {})
        tensors: dict[str, torch.Tensor] = {}
        error = power = 0.0
        for _, linear in projections(self._river_layers()[layer]):
            moment = moments.take(linear.prefix)
            parts = parts_of(linear, packed_modules)
            # Together, as they are served: the parts of a module share the factors of its inputs.
            weight = torch.cat([_weight(folder, part) for part in parts])
            group_size = fitting_group_size(linear.input_size, settings["group_size"])
            made = quantize(weight, group_size, moment, settings["whole_zeros"])
            start = 0
            for part in parts:
                stop = start + part.shape[0]
                tensors |= own_tensors(part.name, made.rows(slice(start, stop)))
                start = stop
            rows = slice(None, None, max(1, len(weight) // ERROR_ROWS))
            wanted = weight[rows].float()
            error += product_power(made.rows(rows).dequantize() - wanted, moment)
            power += product_power(wanted, moment)
        save_file(tensors, Path(out) / f"layer-{layer:04d}.safetensors")
        return {"tokens": moments.tokens, "output_error": (error / power) ** 0.5 if power else 0.0}

    def _river_layers(self) -> list[Any]:
        number = self.vllm_config.model_config.get_total_num_hidden_layers()
        return decoder_layers(self.model_runner.get_model(), number)


def _weight(folder: CheckpointFolder, part: Part) -> torch.Tensor:
    name = f"{part.name}.weight"
    weight = folder.get(name)
    if tuple(weight.shape) != part.shape:
        raise RiverError(f"{folder.place(name)}: unexpected shape")
    return weight
