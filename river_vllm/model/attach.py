"""Gives a vLLM model its river: second weights on projections, decisions between layers.

The decoder layers are found by their structure, not by their names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import nn

from river_vllm.architectures import ARCHITECTURES
from river_vllm.compat import (
    Attention,
    AttentionLayerBase,
    LinearBase,
    MoERunnerInterface,
    PrefillPrefixLMAttention,
    VllmConfig,
    get_tensor_model_parallel_world_size,
    get_tp_group,
)
from river_vllm.config import PREFIX, RiverConfig
from river_vllm.errors import RiverError, UnsupportedModelError
from river_vllm.kernels.native.kernel import Backend
from river_vllm.kernels.native.library import backend
from river_vllm.model.compiled import CONTEXT, RoutedForward
from river_vllm.model.forward import Decision, River, state_arguments
from river_vllm.model.four_bit import kernel_of
from river_vllm.model.head import has_plain_head, install_river_head, some_outputs
from river_vllm.model.linear import Loading, RiverLinearMethod, carries, form_of
from river_vllm.model.residency import CheckpointLayers, Residency, checkpoint_files
from river_vllm.step.router import CRITERION, Router, by_torch, transition_similarity
from river_vllm.step.table import Current, Head
from river_vllm.weights.packing import Packing

Info = Callable[[], dict[str, Any]]


def attach(
    model: nn.Module,
    config: RiverConfig,
    vllm_config: VllmConfig,
    heads: Collection[Head | None],
) -> tuple[River, Info]:
    """Attach a river to ``model``, whose weights have not been loaded yet.

    Args:
        heads: LM heads that the engine's modes use beside the bf16 one.

    Returns:
        The river, and a function that makes its report for ``GET /river``.

    Raises:
        RiverError: the model cannot have a river, or its 4-bit weights are unusable.
    """
    model_config = vllm_config.model_config
    layers = decoder_layers(model, model_config.get_total_num_hidden_layers())
    linears = [[linear for _, linear in projections(layer)] for layer in layers]
    for linear in (linear for layer in linears for linear in layer):
        if not carries(linear.quant_method, linear):
            form = form_of(linear.quant_method, linear)
            raise UnsupportedModelError(
                f"projection '{linear.prefix}' is {form.__name__}: River takes bf16, INT8 and FP8 "
                "(W8A8) and, on the CPU, 4-bit weights in groups of 32 or more",
                cure="",
            )
    native = _native(config, vllm_config.device_config.device, model_config.dtype)
    many = get_tensor_model_parallel_world_size() > 1
    if many and native is not None:
        _refuse_mixed_cpus(native.name)
    read_layer = None
    if config.deep == "fetch":
        read_layer = CheckpointLayers(checkpoint_files(vllm_config), len(layers)).tensors
    read = by_torch(CRITERION)
    if native is not None and CRITERION is transition_similarity:
        read = native.transition
    current = Current(len(layers))
    river = River(
        current,
        Router(read, from_first_rank if many else None),
        RoutedForward(current, model, layers, vllm_config, always=config.in_4_bit),
        Residency(linears, config, lambda weights: model.load_weights(weights), read_layer),
        linears,
        dense=native.dense if native else None,
    )
    packing = Packing(config, model_config, getattr(model, "packed_modules_mapping", {}))
    if "river" in heads or ("draft" in heads and has_plain_head(model)):
        outputs = native.candidates if native else some_outputs
        install_river_head(model, current, packing.expect, outputs)
    family = ARCHITECTURES.get(model_config.architecture.removeprefix(PREFIX))
    # Where no token leaves, nothing reads the residual.
    arguments = state_arguments(layers[0], family is None or family.stale_residual)
    loading = Loading()
    for depth, layer in enumerate(layers):
        for index, linear in enumerate(linears[depth]):
            kept = depth < river.residency.resident
            packer = packing.expect(linear)
            if (kernel := kernel_of(linear.quant_method, linear)) is not None:
                kernel.pack = packing.take
            linear.quant_method = method = RiverLinearMethod(
                linear.quant_method, packer, current, index, kept, loading
            )
            method.hold_on_meta(linear)
        layer.register_forward_pre_hook(Decision(river, depth, arguments), with_kwargs=True)
    # Where River's operators find it, inside a compiled forward (``compiled.py``).
    vllm_config.compilation_config.static_forward_context[CONTEXT] = river

    def info() -> dict[str, Any]:
        return {
            "num_layers": river.num_layers,
            "lm_head": config.lm_head,
            "isa": native and native.name,
            **packing.info(),
            **river.residency.info(),
        }

    return river, info


def decoder_layers(model: nn.Module, num_layers: int) -> list[nn.Module]:
    """The model's decoder layers, in order.

    Raises:
        UnsupportedModelError: it has no single list of ``num_layers`` layers with attention, or a
            layer holds several, another kind of state, or experts.
    """
    name = type(model).__name__
    lists = (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers)
    # Some models list the same layers twice.
    different = {tuple(map(id, layers)): layers for layers in lists}.values()
    candidates = [layers for layers in different if any(_parts(layers, Attention))]
    if len(candidates) != 1:
        raise UnsupportedModelError(
            f"{name}: expected one list of {num_layers} decoder layers with attention, "
            f"found {len(candidates)}"
        )
    (layers,) = candidates
    for part in _parts(layers, AttentionLayerBase):
        # Of several rows of a verifying pass, none may see a later one.
        if not isinstance(part, Attention) or isinstance(part, PrefillPrefixLMAttention):
            raise UnsupportedModelError(
                f"{name}: {type(part).__name__} is no causal attention over K/V"
            )
    for index, layer in enumerate(layers):
        # A layer with several runs several times a pass: verified answers then differed.
        if (count := len(list(_parts(layer, Attention)))) > 1:
            raise UnsupportedModelError(
                f"{name}: layer {index} has {count} attention modules, not one"
            )
    if any(_parts(layers, MoERunnerInterface)):
        raise UnsupportedModelError(f"{name}: its layers are mixtures of experts")
    return list(layers)


def _parts(module: nn.Module, kind: type) -> Iterator[nn.Module]:
    return (part for part in module.modules() if isinstance(part, kind))


def projections(layer: nn.Module) -> list[tuple[str, LinearBase]]:
    """Name and module of every projection of a decoder layer.

    Raises:
        UnsupportedModelError: none is found.
    """
    found = [(n, m) for n, m in layer.named_modules() if isinstance(m, LinearBase)]
    if not found:
        raise UnsupportedModelError(f"{type(layer).__name__} has no linear projections")
    return found


def from_first_rank(values: torch.Tensor) -> torch.Tensor:
    """Rank 0's values: every rank decides alike, however it rounds."""
    return get_tp_group().broadcast(values.contiguous(), src=0)


def _refuse_mixed_cpus(isa: str) -> None:
    """Raise if the ranks' CPUs differ: they would time different passes, and wait for ever."""
    own = isa, torch.backends.cpu.get_cpu_capability()
    first = get_tp_group().broadcast_object(own, src=0)
    if own != first:
        raise RiverError(
            f"tensor parallelism needs CPUs of one kind: rank 0 has {'/'.join(first)} (River's "
            f"instruction set/torch's), another rank {'/'.join(own)}"
        )


def _native(config: RiverConfig, device: torch.device, dtype: torch.dtype) -> Backend | None:
    """River's native back end; None on another device or dtype, or with another kernel."""
    usable = torch.device(device).type == "cpu" and dtype == torch.bfloat16
    return backend() if usable and config.kernel in ("auto", "native") else None
