"""Finds a vLLM model's decoder layers by their structure, not by their names."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from river_vllm.compat import Attention, LinearBase
from river_vllm.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class StateArguments:
    """The residual stream's places among the arguments of a decoder layer's ``forward``."""

    hidden: int
    residual: int | None

    def read(
        self, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The layer's hidden states and, where the model has one, its residual, ``[rows, hidden]``.

        vLLM's Transformers backend runs all rows as one sequence, ``[1, rows, hidden]``.
        """
        hidden = args[self.hidden] if self.hidden < len(args) else kwargs["hidden_states"]
        hidden = hidden.flatten(0, -2)
        if self.residual is None:
            return hidden, None
        if self.residual < len(args):
            return hidden, args[self.residual]
        return hidden, kwargs.get("residual")

    def replace(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], hidden: torch.Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The layer's arguments with other hidden states, ``[rows, hidden]``."""
        if self.hidden < len(args):
            before, behind = args[: self.hidden], args[self.hidden + 1 :]
            return (*before, hidden.view_as(args[self.hidden]), *behind), kwargs
        return args, {**kwargs, "hidden_states": hidden.view_as(kwargs["hidden_states"])}


def decoder_layers(model: nn.Module, num_layers: int) -> list[nn.Module]:
    """The model's decoder layers, in order.

    Raises:
        UnsupportedModelError: the model has no single list of ``num_layers`` layers with one
            attention each.
    """
    name = type(model).__name__
    lists = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    candidates = [layers for layers in lists if all(_attentions(layer) for layer in layers)]
    if len(candidates) != 1:
        raise UnsupportedModelError(
            f"{name}: expected one list of {num_layers} decoder layers with attention, "
            f"found {len(candidates)}"
        )
    layers = list(candidates[0])
    for index, layer in enumerate(layers):
        if _attentions(layer) != 1:
            raise UnsupportedModelError(
                f"{name}: layer {index} has {_attentions(layer)} attention modules, not one"
            )
    return layers


def state_arguments(layer: nn.Module, stale_residual: bool = False) -> StateArguments:
    """The places of hidden states and residual among the arguments of ``layer.forward``.

    Args:
        stale_residual: the layer takes a ``residual`` that is no part of its state.

    Raises:
        UnsupportedModelError: it has no argument ``hidden_states``.
    """
    names = list(inspect.signature(layer.forward).parameters)
    if "hidden_states" not in names:
        raise UnsupportedModelError(
            f"{type(layer).__name__}.forward takes no 'hidden_states' (it takes {names})"
        )
    live = "residual" in names and not stale_residual
    residual = names.index("residual") if live else None
    return StateArguments(names.index("hidden_states"), residual)


def projections(layer: nn.Module) -> list[tuple[str, LinearBase]]:
    """Name and module of every projection of a decoder layer.

    Raises:
        UnsupportedModelError: none is found.
    """
    found = [(n, m) for n, m in layer.named_modules() if isinstance(m, LinearBase)]
    if not found:
        raise UnsupportedModelError(f"{type(layer).__name__} has no linear projections")
    return found


def lm_head(model: nn.Module) -> nn.Module | None:
    """The LM head, also of the language model inside a multimodal one; None where it has none.

    Some models with tied embeddings have none: their input embedding makes the logits.
    """
    inner = getattr(model, "get_language_model", None)
    head = getattr(model if inner is None else inner(), "lm_head", None)
    return head if isinstance(head, nn.Module) else None


def _attentions(layer: nn.Module) -> int:
    return sum(isinstance(module, Attention) for module in layer.modules())
