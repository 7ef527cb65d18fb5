"""Gives a vLLM model its river: second weights on projections, decisions between layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from river_vllm.compat import (
    VllmConfig,
    get_tensor_model_parallel_world_size,
    get_tp_group,
)
from river_vllm.config import RiverConfig
from river_vllm.criterion import CRITERIA, Reading, by_torch
from river_vllm.errors import RiverError
from river_vllm.kernels.native.backend import Backend
from river_vllm.kernels.native.library import backend
from river_vllm.layers.checkpoint import CheckpointLayers, checkpoint_files
from river_vllm.layers.compiled import CONTEXT, RoutedForward
from river_vllm.layers.dual_linear import RiverDualLinearMethod, hold_on_meta
from river_vllm.layers.find import (
    StateArguments,
    decoder_layers,
    projections,
    state_arguments,
)
from river_vllm.layers.residency import Residency
from river_vllm.layers.river_head import (
    has_a_head_by_tokens,
    has_plain_head,
    install_river_head,
    some_outputs,
)
from river_vllm.models.architectures import ARCHITECTURES, PREFIX
from river_vllm.river import River
from river_vllm.router import Router
from river_vllm.token_lists import list_for
from river_vllm.weights.packing import Packing

Info = Callable[[], dict[str, Any]]


def attach(model: nn.Module, config: RiverConfig, vllm_config: VllmConfig) -> tuple[River, Info]:
    """Attach a river to ``model``, whose weights have not been loaded yet.

    Returns:
        The river, and what ``GET /river`` reports of it.

    Raises:
        RiverError: the model has no place for one, or its 4-bit weights are of no use.
    """
    model_config = vllm_config.model_config
    layers = decoder_layers(model, model_config.get_total_num_hidden_layers())
    linears = [[linear for _, linear in projections(layer)] for layer in layers]
    native = _native(config, vllm_config.device_config.device, model_config.dtype)
    many = get_tensor_model_parallel_world_size() > 1
    if many and native is not None:
        _refuse_mixed_cpus(native.name)
    read_layer = None
    if config.deep == "fetch":
        read_layer = CheckpointLayers(checkpoint_files(vllm_config), len(layers)).tensors
    read: Reading = by_torch(CRITERIA[config.criterion])
    if native is not None and config.criterion == "cosine":
        read = native.transition
    river = River(
        Router(read, from_first_rank if many else None),
        RoutedForward(model, layers, vllm_config),
        Residency(linears, config, lambda weights: model.load_weights(weights), read_layer),
        linears,
        dense=native.dense if native else None,
    )
    packing = Packing(config, model_config, getattr(model, "packed_modules_mapping", {}))
    if config.lm_head == "river" or (config.drafts and has_plain_head(model)):
        if config.drafts and not many and has_a_head_by_tokens(model, model_config):
            river.listed = _listed(config, vllm_config)
        outputs = native.candidates if native else some_outputs
        install_river_head(model, river, packing.expect, config.lm_head_candidates, outputs)
    family = ARCHITECTURES[model_config.architecture.removeprefix(PREFIX)]
    arguments = state_arguments(layers[0], family.stale_residual)
    for depth, layer in enumerate(layers):
        for index, linear in enumerate(linears[depth]):
            kept = depth < river.residency.resident
            linear.quant_method = RiverDualLinearMethod(river, index, packing.expect(linear), kept)
            hold_on_meta(linear)
        hook = _Decision(river, depth, arguments)
        layer.register_forward_pre_hook(hook, with_kwargs=True)
    # Where River's operators find it, inside a compiled forward (``layers/compiled.py``).
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


def from_first_rank(values: torch.Tensor) -> torch.Tensor:
    """Rank 0's values: equal decisions on every rank, however each one rounds."""
    return get_tp_group().broadcast(values.contiguous(), src=0)


def _refuse_mixed_cpus(isa: str) -> None:
    """Ranks on CPUs of two kinds would time other passes at the start, and wait for ever."""
    own = isa, torch.backends.cpu.get_cpu_capability()
    first = get_tp_group().broadcast_object(own, src=0)
    if own != first:
        raise RiverError(
            f"tensor parallelism needs CPUs of one kind: rank 0 has {'/'.join(first)} (River's "
            f"instruction set/torch's), another rank {'/'.join(own)}"
        )


def _native(config: RiverConfig, device: torch.device, dtype: torch.dtype) -> Backend | None:
    """The back end for the similarity and the candidates' logits; None on another device, or where
    another kernel is asked for."""
    usable = torch.device(device).type == "cpu" and dtype == torch.bfloat16
    return backend() if usable and config.kernel in ("auto", "native") else None


def _listed(config: RiverConfig, vllm_config: VllmConfig) -> torch.Tensor | None:
    """The tokens that drafts are picked from; None where nobody has counted any."""
    found = list_for(config, vllm_config.model_config)
    if found is None:
        return None
    return torch.from_numpy(found.ids).to(vllm_config.device_config.device)


class _Decision:
    """A pre-hook of decoder layer ``depth``: decides who runs it in which precision.

    Traced, it reads nothing that differs between layers, so that one trace serves all of them.
    """

    def __init__(self, river: River, depth: int, arguments: StateArguments) -> None:
        self._river = river
        self._depth = depth
        self._arguments = arguments

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not torch.compiler.is_compiling():
            self._river.route(self._depth, *self._arguments.read(args, kwargs))
            return None
        if not self._river.routed.active:
            return None
        hidden, residual = self._arguments.read(args, kwargs)
        return self._arguments.replace(args, kwargs, torch.ops.river.route(hidden, residual))
