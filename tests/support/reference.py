"""A plain decoder in PyTorch: backbone layers up to an exit, dequantised ones after it, one cache.

Float32 arithmetic over the checkpoint's bf16 weights; nothing of vLLM's and nothing of River's
layers, only the quantisers under test are shared. Covers the Llama shape with optional biases.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from river_vllm.weights.quantizers import QUANTIZERS, fitting_group_size

PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


class ReferenceModel:
    """Computes one token after another, each at its own exit layer."""

    def __init__(self, folder: Path, quantizer: str = "hqq", group_size: int = 128) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
        self.weights = weights
        self.num_layers: int = self.config["num_hidden_layers"]
        self.heads: int = self.config["num_attention_heads"]
        self.kv_heads: int = self.config["num_key_value_heads"]
        self.head_size: int = self.config["hidden_size"] // self.heads
        self.eps: float = self.config["rms_norm_eps"]
        rope = self.config.get("rope_parameters") or {}
        self.theta: float = rope.get("rope_theta", self.config.get("rope_theta", 10000.0))
        self.states: list[list[torch.Tensor]] = []
        """Of the last run: each token's residual stream after 1 … L layers."""
        self.river = {}
        for layer in range(self.num_layers):
            for name in PROJECTIONS:
                key = f"model.layers.{layer}.{name}.weight"
                weight = weights[key].bfloat16()
                group = fitting_group_size(weight.shape[1], group_size)
                self.river[key] = QUANTIZERS[quantizer](weight, group).dequantize()

    def run(self, tokens: list[int], exit_layers: list[int]) -> torch.Tensor:
        """Teacher-forced: ``tokens[i]`` runs ``exit_layers[i]`` backbone layers.

        Returns:
            Logits after each token, float32 ``[tokens, vocabulary]``.
        """
        self.states = []
        caches: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(self.num_layers)]
        return torch.stack(
            [
                self._token(token, position, depth, caches)
                for position, (token, depth) in enumerate(zip(tokens, exit_layers, strict=True))
            ]
        )

    def _token(
        self,
        token: int,
        position: int,
        exit_layer: int,
        caches: list[list[tuple[torch.Tensor, torch.Tensor]]],
    ) -> torch.Tensor:
        x = self.weights["model.embed_tokens.weight"][token]
        self.states.append([])
        for layer in range(self.num_layers):
            on_river = layer >= exit_layer
            name = f"model.layers.{layer}."
            h = self._norm(x, name + "input_layernorm.weight")
            x = x + self._attention(h, layer, position, on_river, caches[layer])
            h = self._norm(x, name + "post_attention_layernorm.weight")
            gate = self._linear(h, name + "mlp.gate_proj", on_river)
            up = self._linear(h, name + "mlp.up_proj", on_river)
            hidden = torch.nn.functional.silu(gate) * up
            x = x + self._linear(hidden, name + "mlp.down_proj", on_river)
            self.states[-1].append(x)
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        return head @ self._norm(x, "model.norm.weight")

    def _attention(
        self,
        h: torch.Tensor,
        layer: int,
        position: int,
        on_river: bool,
        cache: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        name = f"model.layers.{layer}.self_attn."
        q = self._linear(h, name + "q_proj", on_river).view(self.heads, self.head_size)
        k = self._linear(h, name + "k_proj", on_river).view(self.kv_heads, self.head_size)
        v = self._linear(h, name + "v_proj", on_river).view(self.kv_heads, self.head_size)
        cache.append((self._rotate(k, position), v))
        keys = torch.stack([entry[0] for entry in cache], dim=1)
        values = torch.stack([entry[1] for entry in cache], dim=1)
        repeat = self.heads // self.kv_heads
        keys = keys.repeat_interleave(repeat, dim=0)
        values = values.repeat_interleave(repeat, dim=0)
        scores = torch.einsum("hd,htd->ht", self._rotate(q, position), keys)
        weights = (scores / self.head_size**0.5).softmax(dim=-1)
        out = torch.einsum("ht,htd->hd", weights, values).reshape(-1)
        return self._linear(out, name + "o_proj", on_river)

    def _linear(self, x: torch.Tensor, name: str, on_river: bool) -> torch.Tensor:
        weight = (self.river if on_river else self.weights)[name + ".weight"]
        bias = self.weights.get(name + ".bias")
        return weight @ x if bias is None else weight @ x + bias

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean() + self.eps) * self.weights[name]

    def _rotate(self, x: torch.Tensor, position: int) -> torch.Tensor:
        half = self.head_size // 2
        inverse = self.theta ** -(torch.arange(half) / half)
        angle = position * inverse
        a, b = x[:, :half], x[:, half:]
        return torch.cat(
            [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1
        )
