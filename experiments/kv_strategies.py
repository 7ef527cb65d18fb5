"""Five ways to treat the K/V of tokens that leave early, on the same text with the same exits.

A share of the tokens of the backbone's own greedy answers leaves after ``--exit-layer``; which ones
is drawn once. What differs is what later tokens find in the layers that those tokens did not run:

* recompute: the backbone's K/V, computed after all (EE-LLM): exact, and no work is saved for it;
* mask: nothing, the token is hidden there (D-LLM);
* propagate: K/V projected from the state at the exit (CALM);
* monotone: nothing is missing, every token after the first that leaves, leaves too (SkipDecode);
* river: K/V of the 4-bit layers that the token runs to the end.

All but the river read an exiting token's answer from its state at the exit, through the final norm
and the LM head. Float32, transformers' modules, one text at a time, no engine: this is about
outcomes, not about time. Agreement and divergence are those with the backbone's next-token
distribution, over the tokens that stay (what the K/V cost) and over those that leave.

    python experiments/kv_strategies.py MODEL --data gsm8k.jsonl [--exit-layer 4] [--share 0.75]
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from servers import machine
from torch import nn
from torch.nn.functional import linear, log_softmax, scaled_dot_product_attention
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from river_vllm.quantization import QUANTIZERS, fitting_group_size
from server.cli.prompts import from_files

STRATEGIES = ("recompute", "mask", "propagate", "monotone", "river")


class Layers:
    """The decoder layers of a Llama-shaped model, with a 4-bit twin of each projection."""

    def __init__(self, model: Any, quantizer: str, group_size: int) -> None:
        self._model = model
        self._twins: dict[nn.Module, torch.Tensor] = {}
        for layer in model.model.layers:
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    group = fitting_group_size(module.in_features, group_size)
                    grouped = QUANTIZERS[quantizer](module.weight, group)
                    self._twins[module] = grouped.dequantize()

    def project(self, module: nn.Linear, x: torch.Tensor, leaves: torch.Tensor) -> torch.Tensor:
        """``x [rows, in]``, the rows that ``leaves`` marks by the 4-bit twin."""
        full = module(x)
        if not leaves.any():
            return full
        return torch.where(leaves[:, None], linear(x, self._twins[module], module.bias), full)

    def attend(
        self, layer: Any, x: torch.Tensor, source: torch.Tensor, seen: torch.Tensor, four: Any
    ) -> torch.Tensor:
        """Attention of normed states ``x`` to K/V from normed states ``source``, ``[rows, d]``;
        ``seen`` is the mask ``[rows, rows]``."""
        attention = layer.self_attn
        rows, size = len(x), attention.head_dim

        def heads(states: torch.Tensor) -> torch.Tensor:
            return states.view(1, rows, -1, size).transpose(1, 2)

        query = heads(self.project(attention.q_proj, x, four))
        key = heads(self.project(attention.k_proj, source, four))
        value = heads(self.project(attention.v_proj, source, four))
        cos, sin = self._model.model.rotary_emb(x[None], torch.arange(rows)[None])
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        found = scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True)
        return self.project(attention.o_proj, found.transpose(1, 2).reshape(rows, -1), four)

    def run(self, tokens: torch.Tensor, leaves: torch.Tensor, exit_layer: int, how: str) -> Any:
        """Logits ``[rows, vocabulary]`` of one text, ``leaves [rows]`` being the rows that exit."""
        inner = self._model.model
        rows = len(tokens)
        causal = torch.ones(rows, rows, dtype=torch.bool).tril()
        hidden = inner.embed_tokens(tokens)
        at_exit = hidden
        for index, layer in enumerate(inner.layers):
            gone = leaves if index >= exit_layer else torch.zeros_like(leaves)
            if index == exit_layer:
                at_exit = hidden
            four = gone if how == "river" else torch.zeros_like(gone)
            seen = causal
            if how == "mask" and gone.any():
                seen = causal & (~gone[None, :] | torch.eye(rows, dtype=torch.bool))
            source = hidden
            if how == "propagate":
                source = torch.where(gone[:, None], at_exit, hidden)
            norm = layer.input_layernorm
            hidden = hidden + self.attend(layer, norm(hidden), norm(source), seen, four)
            x = layer.post_attention_layernorm(hidden)
            mlp = layer.mlp
            gate = mlp.act_fn(self.project(mlp.gate_proj, x, four))
            up = self.project(mlp.up_proj, x, four)
            hidden = hidden + self.project(mlp.down_proj, gate * up, four)
        if how != "river":
            hidden = torch.where(leaves[:, None], at_exit, hidden)
        return self._model.lm_head(inner.norm(hidden))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a Llama or Qwen2 checkpoint")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="JSONL files")
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--exit-layer", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.75, help="of the answer's tokens")
    parser.add_argument("--quantizer", choices=tuple(QUANTIZERS), default="hqq")
    parser.add_argument("--group-size", type=int, default=128)
    args = parser.parse_args()
    with torch.inference_mode():
        measure(args)


def measure(args: argparse.Namespace) -> None:
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    layers = Layers(model, args.quantizer, args.group_size)
    prompts = from_files(args.data, tokenizer, 512, 0).tokens[: args.texts]
    chance = torch.Generator().manual_seed(0)
    sums: dict[tuple[str, str], torch.Tensor] = defaultdict(lambda: torch.zeros(3).double())
    for prompt in prompts:
        ids = torch.tensor([prompt])
        text = model.generate(ids, max_new_tokens=args.tokens, do_sample=False)[0]
        # Row i predicts token i + 1; the first token of the answer comes from the prompt.
        answer = torch.arange(len(text)) >= len(prompt)
        drawn = answer & (torch.rand(len(text), generator=chance) < args.share)
        no_one = torch.zeros_like(drawn)
        exact = log_softmax(layers.run(text, no_one, args.exit_layer, "recompute").double(), -1)
        for how in STRATEGIES:
            leaves = drawn
            if how == "monotone":
                leaves = answer & (drawn.cumsum(0) > 0)
            found = log_softmax(layers.run(text, leaves, args.exit_layer, how).double(), -1)
            agrees = (found.argmax(-1) == exact.argmax(-1)).double()
            divergence = (exact.exp() * (exact - found)).sum(-1)
            for who, rows in (("stay", answer & ~leaves), ("leave", leaves)):
                sums[how, who] += torch.stack(
                    [rows.sum().double(), agrees[rows].sum(), divergence[rows].sum()]
                )
    print(f"{Path(args.model).name}, {time.strftime('%Y-%m-%d')}, {machine()}")
    print(f"exit after layer {args.exit_layer} of {len(model.model.layers)}, {args.quantizer}")
    print("| K/V of tokens that left | stay: agreement | KL | leave: agreement | KL | tokens |")
    print("|---|---|---|---|---|---|")
    for how in STRATEGIES:
        cells = []
        for who in ("stay", "leave"):
            count, agreed, divergence = sums[how, who].tolist()
            cells.append(f"{agreed / count:.1%} | {divergence / count:.4f}" if count else "- | -")
        counts = " + ".join(f"{sums[how, who][0]:.0f}" for who in ("stay", "leave"))
        print(f"| {how} | {cells[0]} | {cells[1]} | {counts} |")


if __name__ == "__main__":
    main()
