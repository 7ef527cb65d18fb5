"""The river of one model: second weights on its projections, a router between its layers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from river_vllm.compat import (
    LinearBase,
    VllmConfig,
    checkpoint_files,
    get_tensor_model_parallel_world_size,
    get_tp_group,
    hold_on_meta,
    init_logger,
)
from river_vllm.config import RiverConfig
from river_vllm.kernels.base import LinearSpec, PackedLinear
from river_vllm.kernels.choice import KernelChooser
from river_vllm.kernels.crossover import Crossover, Pass, Product
from river_vllm.kernels.native.candidates import NativeCandidates
from river_vllm.kernels.native.library import Backend, backend
from river_vllm.kernels.native.transition import NativeTransition
from river_vllm.layers.checkpoint import CheckpointLayers
from river_vllm.layers.compiled import RoutedForward
from river_vllm.layers.dual_linear import RiverDualLinearMethod
from river_vllm.layers.find import (
    StateArguments,
    decoder_layers,
    lm_head,
    projections,
    state_arguments,
)
from river_vllm.layers.ops import CONTEXT
from river_vllm.layers.progress import PackingProgress
from river_vllm.layers.residency import Residency
from river_vllm.layers.river_head import chosen_outputs, has_plain_head, install_river_head
from river_vllm.models.architectures import ARCHITECTURES, PREFIX
from river_vllm.router.batch import StepBatch
from river_vllm.router.plan import Path, RowPlan
from river_vllm.router.router import Router
from river_vllm.weights.choose import weight_source

logger = init_logger("vllm.river")

_T = TypeVar("_T")


class StepObserver(Protocol):
    """Looks at the steps of a measurement."""

    def step(self, batch: StepBatch, hidden: torch.Tensor) -> None:
        """After a routed forward pass; ``hidden`` is its output, ``[rows, hidden]``."""


class River:
    """Everything River adds to a model. Not a module: the model's own tree stays as it was."""

    def __init__(self, model: nn.Module, config: RiverConfig, vllm_config: VllmConfig) -> None:
        model_config = vllm_config.model_config
        self.config = config
        device = vllm_config.device_config.device
        self.plan = RowPlan(device)
        self._dtype = model_config.dtype
        native = _native(config, device, self._dtype)
        many = get_tensor_model_parallel_world_size() > 1
        layers = decoder_layers(model, model_config.get_total_num_hidden_layers())
        self.num_layers = len(layers)
        self.steps_decide = (
            config.max_rows == "auto"
            and config.deep != "fetch"
            and not config.offloads(self.num_layers)
        )
        """Whether ``max_rows`` is a matter of measurement, and the whole backbone is there."""
        self.router = Router(
            self.num_layers,
            self.plan,
            config.scope,
            device,
            _broadcast if many else None,
            config.signal,
            NativeTransition(native) if native and config.signal == "cosine" else None,
        )
        self.observer: StepObserver | None = None
        packed_modules = getattr(model, "packed_modules_mapping", {})
        self._source = weight_source(config, model_config, packed_modules)
        self._chooser = KernelChooser(config.kernel, config.activations, self._source.integer_zeros)
        self._isa = native and native.name
        self._crossover = Crossover()
        self._max_rows: int | None = None
        self._group_sizes: set[int] = set()
        self._nbytes = 0
        self._seconds = 0.0
        self._progress = PackingProgress(logger.info, shown=get_tp_group().is_first_rank)
        self.river_head = config.lm_head == "river" or (config.river_head and has_plain_head(model))
        if self.river_head:
            packer = partial(self._pack, lm_head(model))
            chosen = NativeCandidates(native) if native else chosen_outputs
            install_river_head(model, self.plan, packer, config.lm_head_candidates, chosen)
            self._progress.expect()
        family = ARCHITECTURES[model_config.architecture.removeprefix(PREFIX)]
        arguments = state_arguments(layers[0], family.stale_residual)
        vllm_config.compilation_config.static_forward_context[CONTEXT] = self
        products = config.verify or vllm_config.use_v2_model_runner or not self.steps_decide
        linears = [[linear for _, linear in projections(layer)] for layer in layers]
        self._linears: list[LinearBase] = []
        for index, layer in enumerate(layers):
            for linear in linears[index]:
                # All layers are alike: one is measured, unless whole steps will be.
                self._add_river_weight(linear, measured=bool(products) and index == 0)
            layer.register_forward_pre_hook(
                partial(self._before_layer, index, arguments), with_kwargs=True
            )
        self.routed = RoutedForward(model, layers, vllm_config, self.plan)
        self.residency = Residency(linears, config, lambda weights: model.load_weights(weights))
        if config.deep == "fetch":
            files = CheckpointLayers(checkpoint_files(vllm_config), self.num_layers)
            self.residency.read_from(files.tensors)

    @contextmanager
    def step(self, batch: StepBatch | None) -> Iterator[None]:
        """Route one forward pass; without a batch (warm-up, dummy runs) nothing is counted."""
        limit = self.residency.limit(real=batch is not None)
        with self.router.step(batch or StepBatch(0, []), limit), self.routed():
            yield

    def info(self) -> dict[str, Any]:
        """What is in force, for operators."""
        return {
            "num_layers": self.num_layers,
            "quantizer": self._source.quantizer,
            "activations": self._chooser.activations,
            "lm_head": "river" if self.river_head else "backbone",
            "group_sizes": sorted(self._group_sizes),
            "kernels": self._chooser.names,
            "isa": self._isa,
            "zero_points": self._chooser.zero_points,
            "crossover": {
                "max_rows": self.max_rows,
                "pays_up_to_rows": self._crossover.rows,
                "speedup_by_rows": {
                    str(rows): round(speedup, 2)
                    for rows, speedup in self._crossover.speedup.items()
                },
            },
            **self.residency.info(),
            "river_bytes": self._nbytes,
            "weights": {**self._source.report(), "seconds": round(self._seconds, 2)},
        }

    @property
    def max_rows(self) -> int | None:
        """Rows of a step that may leave by their own decision, None without a limit; the same on
        every rank."""
        wanted = self.config.max_rows
        if wanted == "all" or (wanted == "auto" and self.config.deep == "fetch"):
            # Reading a layer from the checkpoint never pays against running it in 4 bit.
            return None
        if wanted != "auto":
            return wanted
        if self._max_rows is None:
            rows = self._crossover.rows
            if get_tensor_model_parallel_world_size() > 1:
                rows = _first_ranks(rows)
            self._max_rows = rows
        return self._max_rows

    def measure_steps(self, backbone: Pass, river: Pass, most: int) -> None:
        """Let whole steps decide ``max_rows`` instead of the products of one layer."""
        self._crossover.measure_steps(backbone, river, most)
        self._max_rows = None

    def _add_river_weight(self, linear: LinearBase, measured: bool) -> None:
        hook = partial(self._measure, linear) if measured else None
        linear.quant_method = RiverDualLinearMethod(
            self.plan, len(self._linears), partial(self._pack, linear), hook
        )
        self._linears.append(linear)
        self._progress.expect()
        hold_on_meta(linear)

    def _measure(self, linear: LinearBase, backbone: Product, river: Product) -> None:
        in_features = getattr(linear, "input_size_per_partition", linear.input_size)
        device = linear.weight.device
        self._crossover.measure(in_features, self._dtype, device, backbone, river)

    def _pack(self, layer: nn.Module, weight: torch.Tensor) -> PackedLinear:
        start = time.perf_counter()
        self._progress.start()
        out_features, in_features = weight.shape
        group_size = self._source.group_size(layer, in_features)
        spec = LinearSpec(in_features, out_features, group_size, self._dtype, weight.device)
        packed = self._chooser.pack(
            spec, lambda whole: self._source.groups(layer, weight, group_size, whole)
        )
        self._group_sizes.add(group_size)
        self._nbytes += packed.nbytes
        self._seconds += time.perf_counter() - start
        if self._progress.step():
            logger.info(
                "River: %d layers in 4 bit (%s, groups of %s, %s kernel), %.1f MiB, %s in %.1f s",
                self.num_layers,
                self._source.quantizer,
                "/".join(map(str, sorted(self._group_sizes))),
                "/".join(self._chooser.names),
                self._nbytes / 2**20,
                self._source.summary(),
                self._seconds,
            )
        return packed

    def _before_layer(
        self,
        index: int,
        arguments: StateArguments,
        layer: nn.Module,
        args: tuple[torch.Tensor, ...],
        kwargs: dict[str, torch.Tensor],
    ) -> None:
        hidden, residual = arguments.read(args, kwargs)
        if self.plan.opaque and torch.compiler.is_compiling():
            torch.ops.river.route(hidden, residual, self.plan.order, index)
        else:
            self.route(index, hidden, residual)

    def route(self, index: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """Decide who runs layer ``index`` in which precision; both tensors ``[rows, hidden]``."""
        self.router.before_layer(index, hidden, residual)
        if index >= self.residency.resident and self.plan.path is not Path.RIVER:
            self.residency.need(index)

    def linear(self, index: int, x: torch.Tensor, biased: bool) -> torch.Tensor:
        """Projection ``index`` of the model on ``x``, with its bias where it adds it itself."""
        linear = self._linears[index]
        method: RiverDualLinearMethod = linear.quant_method
        return method.product(linear, x, linear.bias if biased else None)


def _native(config: RiverConfig, device: torch.device, dtype: torch.dtype) -> Backend | None:
    """The back end that serves small operators too; None on another device, or where somebody has
    asked for another kernel."""
    usable = torch.device(device).type == "cpu" and dtype == torch.bfloat16
    return backend() if usable and config.kernel in ("auto", "native") else None


def _first_ranks(value: _T) -> _T:
    """Rank 0's value on every rank: what was measured differs from rank to rank."""
    found: _T = get_tp_group().broadcast_object(value, src=0)
    return found


def _broadcast(values: torch.Tensor) -> torch.Tensor:
    """Rank 0's similarities: equal decisions on every rank, whatever all-reduce rounds."""
    return get_tp_group().broadcast(values.contiguous(), src=0)
