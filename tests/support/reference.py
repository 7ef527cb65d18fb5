"""What a river is, written without River: transformers' own model of a checkpoint.

transformers runs the backbone over the prompt. Then its linears from the exit layer on get the
dequantised 4-bit weights, and it runs the answer on the K/V cache that the prompt has left. Only
the quantisers under test are shared.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from river_vllm.weights.quantizers import QUANTIZERS, fitting_group_size
from tests.support.adapters import difference
from tests.support.engines import Generated


class Reference:
    """transformers' model in float32, teacher-forced."""

    def __init__(
        self,
        folder: Path,
        quantizer: str = "hqq",
        group_size: int = 128,
        adapter: Path | None = None,
    ) -> None:
        import transformers
        from transformers.pytorch_utils import Conv1D

        (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
        cls = getattr(transformers, architecture)
        self._model = cls.from_pretrained(folder, dtype=torch.float32).eval()
        # An engine on vLLM's Transformers backend decorates transformers' own class for
        # compilation (compilation/decorators.py), and the decoration asks for this attribute.
        for module in self._model.modules():
            module.do_not_compile = True
        self.num_layers: int = self._model.config.get_text_config().num_hidden_layers
        (layers,) = (
            module
            for module in self._model.modules()
            if isinstance(module, torch.nn.ModuleList) and len(module) == self.num_layers
        )
        self._linears: list[tuple[int, torch.nn.Module, torch.Tensor, torch.Tensor]] = []
        """Layer, module, backbone weight and river weight."""
        for index, layer in enumerate(layers):
            for module in layer.modules():
                turned = isinstance(module, Conv1D)
                if turned or isinstance(module, torch.nn.Linear):
                    weight = module.weight.data.t() if turned else module.weight.data
                    group = fitting_group_size(weight.shape[1], group_size)
                    river = QUANTIZERS[quantizer](weight.bfloat16(), group).dequantize()
                    pair = (weight.t(), river.t()) if turned else (weight, river)
                    self._linears.append((index, module, *pair))
        if adapter is not None:
            self._adapt(adapter)

    def _adapt(self, adapter: Path) -> None:
        """Merge a LoRA adapter into every weight, those in 4 bit too."""
        changes = {
            module: change
            for name, module in self._model.named_modules()
            if (change := difference(adapter, name)) is not None
        }
        for module, change in changes.items():
            module.weight.data = module.weight.data + change
        self._linears = [
            (index, module, backbone + changes[module], river + changes[module])
            for index, module, backbone, river in self._linears
        ]

    @torch.inference_mode()
    def logits(
        self, prompt: list[int], answer: list[int], exit_layer: int, prompt_exits: bool = False
    ) -> torch.Tensor:
        """Logits after the prompt and after each of ``answer``, whose tokens exit.

        Returns:
            float32 ``[1 + len(answer), vocabulary]``.
        """
        self._exit_after(exit_layer if prompt_exits else self.num_layers)
        first = self._model(torch.tensor([prompt]), use_cache=True)
        self._exit_after(exit_layer)
        cache = first.past_key_values
        rest = self._model(torch.tensor([answer]), past_key_values=cache, use_cache=True)
        return torch.cat([first.logits[0, -1:], rest.logits[0]])

    def error(
        self, prompt: list[int], answer: Generated, exit_layer: int, prompt_exits: bool = False
    ) -> float:
        """Largest, over the steps, RMS difference of the reported logits, relative to their
        spread."""
        logits = self.logits(prompt, answer.tokens[:-1], exit_layer, prompt_exits)
        worst = 0.0
        for expected, reported in zip(logits, answer.logprobs, strict=True):
            difference = torch.tensor(list(reported.values())) - expected[list(reported)]
            worst = max(worst, float(difference.square().mean().sqrt() / expected.std()))
        return worst

    @torch.inference_mode()
    def similarities(self, tokens: list[int]) -> torch.Tensor:
        """cos(h^(l−1), h^(l)) for l = 1 … L−1, float32 ``[L − 1, tokens]``."""
        self._exit_after(self.num_layers)
        out = self._model(torch.tensor([tokens]), output_hidden_states=True)
        # The last entry is past the final norm.
        states = torch.stack(out.hidden_states[: self.num_layers])[:, 0]
        return torch.nn.functional.cosine_similarity(states[:-1], states[1:], dim=-1)

    def _exit_after(self, exit_layer: int) -> None:
        for index, module, backbone, river in self._linears:
            module.weight.data = backbone if index < exit_layer else river
