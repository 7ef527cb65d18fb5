"""One projection, two precisions: vLLM's own method for the backbone, and a 4-bit twin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import torch
from torch import nn

from river_vllm.compat import (
    BasevLLMParameter,
    CompressedTensorsW8A8Fp8,
    CompressedTensorsW8A8Int8,
    Fp8LinearMethod,
    LinearMethodBase,
    UnquantizedLinearMethod,
    default_weight_loader,
    get_layerwise_info,
    initialize_online_processing,
    restore_layer_on_meta,
    to_meta_tensor,
)
from river_vllm.errors import RiverError
from river_vllm.kernels.base import PackedLinear
from river_vllm.model.four_bit import kernel_of
from river_vllm.model.rounding import Alike, alike
from river_vllm.step.table import Current, Path
from river_vllm.weights.formats import scaled
from river_vllm.weights.packing import Packer

_PROCESSED = "_already_called_process_weights_after_loading"
"""vLLM's own mark; its layer-wise loading takes it off before it processes a layer again."""

Floats = Callable[[nn.Module], torch.Tensor]
"""Gives the weight of a loaded projection as floats ``[N, K]``, in the model's dtype."""


def _plain(layer: Any) -> torch.Tensor:
    weight: torch.Tensor = layer.weight
    return weight.detach()


def _scaled(layer: Any) -> torch.Tensor:
    """Codes ``[N, K]`` times the scales of outputs, of blocks, or of a fused projection's parts."""
    weight = layer.weight.detach()
    scale = getattr(layer, "weight_scale", None)
    scale = (layer.weight_scale_inv if scale is None else scale).detach()
    if block := getattr(layer, "weight_block_size", None):
        scale = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        scale = scale[: weight.shape[0], : weight.shape[1]]
    elif len(scale) != len(weight):
        widths = torch.tensor(layer.logical_widths, device=weight.device)
        scale = scale.flatten().repeat_interleave(widths)
    return scaled(weight, scale, layer.params_dtype)


_FLOATS: dict[type, Floats] = {
    UnquantizedLinearMethod: _plain,
    CompressedTensorsW8A8Int8: _scaled,
    CompressedTensorsW8A8Fp8: _scaled,
    Fp8LinearMethod: _scaled,
}
"""By vLLM's method, or by the scheme that its method has chosen for a projection."""


def form_of(inner: object, layer: nn.Module) -> type:
    """The class that holds a projection's weight: vLLM's method, or the scheme that it chose."""
    scheme = getattr(layer, "scheme", None)
    return type(inner if scheme is None else scheme)


def carries(inner: object, layer: nn.Module) -> bool:
    """Whether a projection can have a river: made of its weight, or its own 4-bit one."""
    return form_of(inner, layer) in _FLOATS or kernel_of(inner, layer) is not None


@dataclass(slots=True)
class Loading:
    """Which parameters of a model's projections the checkpoint has filled."""

    any: bool = False
    """Whether it has filled one. Some of vLLM's load formats fill none of them by name."""


@dataclass(slots=True)
class _Filled:
    """The parameters of one projection that the checkpoint has filled.

    Attributes:
        parts: for each parameter, the parts of a fused projection that were given; None: all.
    """

    loading: Loading
    parts: dict[str, set[Any]] = field(default_factory=dict)

    def watch(self, layer: nn.Module) -> None:
        """Note from now on what is loaded into ``layer``."""
        for name, parameter in _weights(layer):
            loader = getattr(parameter, "weight_loader", default_weight_loader)
            watched: Any = parameter
            watched.weight_loader = self._noting(loader, layer, name)

    def check(self, layer: Any) -> None:
        """Refuse a projection of which the checkpoint lacks a tensor.

        vLLM leaves such a parameter as the memory was (``model_loader/reload/layerwise.py``,
        ``finalize_layerwise_processing``).

        Raises:
            RiverError: names the tensor.
        """
        if not self.loading.any:
            return
        fused = _parts(layer)
        for name, _ in _weights(layer):
            given = self.parts.get(name, set())
            if None not in given and len(given) < fused:
                raise RiverError(
                    f"the checkpoint lacks '{name}' of projection '{getattr(layer, 'prefix', '')}'"
                    f"{', or a part of it' if fused > 1 else ''}"
                )

    def _noting(self, loader: Callable[..., Any], layer: Any, name: str) -> Callable[..., Any]:
        @wraps(loader)
        def noting(param: Any, loaded_weight: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            part = args[0] if args else kwargs.get("loaded_shard_id")
            try:
                result = loader(param, loaded_weight, *args, **kwargs)
            except (AssertionError, RuntimeError, ValueError) as error:
                raise RiverError(
                    f"the checkpoint's '{name}' of projection '{layer.prefix}' has shape "
                    f"{tuple(loaded_weight.shape)}, which does not fit the model's "
                    f"{tuple(param.shape)}"
                ) from error
            self.loading.any = True
            self.parts.setdefault(name, set()).add(part)
            return result

        return noting


class RiverLinearMethod(LinearMethodBase):
    """Wraps the ``quant_method`` of a decoder-layer projection.

    The module keeps its name and its parameters, so loading, tensor parallelism, bias and the
    layer's forward pass stay vLLM's. The 4-bit twin hangs on this object, outside the module tree,
    where neither the weight loader nor a module walk meets it.

    Args:
        inner: vLLM's method; ``carries`` says of which forms.
        packer: quantises and packs the projection's weight; unused if that is in 4 bit itself.
        current: the pass under way.
        index: place of this projection in its layer.
        keeps_backbone: whether the backbone's weight stays after loading.
        loading: of the model, shared by its projections.
    """

    # vLLM's online quantisation: a projection's weight has memory only from when its parts are
    # read until it is processed, one projection at a time (``model_loader/reload/layerwise.py``).
    uses_meta_device = True
    # vLLM's cache of processed weights holds the backbone's form only and would skip the packing.
    supports_pre_processed_weights = False

    def __init__(
        self,
        inner: LinearMethodBase,
        packer: Packer,
        current: Current,
        index: int,
        keeps_backbone: bool = True,
        loading: Loading | None = None,
    ) -> None:
        super().__init__()
        self._inner = inner
        self._packer = packer
        self._current = current
        self._index = index
        self._keeps_backbone = keeps_backbone
        self._packed: PackedLinear | None = None
        self._bias: torch.Tensor | None = None
        self._restoring = False
        self._filled = _Filled(loading or Loading())
        self.has_backbone = False
        """Whether the backbone's weight is in memory."""
        self.backbone_nbytes = 0
        """Bytes of the backbone's weight, in memory or not."""
        self.out_features = 0
        """N of this rank's weight; 0 before it is packed."""

    @property
    def packed(self) -> PackedLinear:
        """The 4-bit twin.

        Raises:
            RuntimeError: the weights have not been loaded.
        """
        if self._packed is None:
            raise RuntimeError("the river's weights are packed after the checkpoint is loaded")
        return self._packed

    def hold_on_meta(self, layer: nn.Module) -> None:
        """Give the weight of ``layer`` no memory before its parts are loaded and processed."""
        for name, parameter in list(_weights(layer)):
            held = to_meta_tensor(parameter)
            if type(parameter) is BasevLLMParameter:
                # Without a dimension of outputs: each part of a fused projection fills all of it.
                # vLLM counts elements to know when a projection is complete
                # (``model_loader/reload/layerwise.py``).
                held.weight_loader_numel = _parts(layer) * parameter.numel()
            delattr(layer, name)
            layer.register_parameter(name, held)
        self._filled.watch(layer)
        initialize_online_processing(layer)

    def create_weights(self, *args: Any, **kwargs: Any) -> None:
        """vLLM's; a projection is wrapped after its weights were created."""
        self._inner.create_weights(*args, **kwargs)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Pack before vLLM's method repacks, which may drop the loaded weight."""
        # vLLM calls this when the weight is complete, and once more for every module.
        if getattr(layer, _PROCESSED, False):
            return
        setattr(layer, _PROCESSED, True)
        restoring, self._restoring = self._restoring, False
        kernel = kernel_of(self._inner, layer)
        if not restoring:
            self._filled.check(layer)
            self.backbone_nbytes = sum(parameter.nbytes for _, parameter in _weights(layer))
            bias = getattr(layer, "bias", None)
            # vLLM may cast the module's own bias to float32 in place.
            self._bias = None if bias is None else bias.detach().clone()
            if kernel is None:
                weight = _FLOATS[form_of(self._inner, layer)](layer)
                self._packed, self.out_features = self._packer(weight), weight.shape[0]
        if restoring or self._keeps_backbone:
            self._inner.process_weights_after_loading(layer)
            self.has_backbone = True
        else:
            self.drop_backbone(layer)
        if kernel is not None:
            self._packed, self.out_features = kernel.packed, kernel.out_features

    def alike(self, layer: Any) -> Alike:
        """``model/rounding.py``, of the backbone's product."""
        width = getattr(layer, "input_size_per_partition", layer.input_size)
        product = partial(self._inner.apply, layer)
        return alike(product, width, self.out_features, layer.params_dtype)

    def plain_weight(self, layer: nn.Module) -> torch.Tensor | None:
        """The backbone's weight ``[N, K]`` as in the checkpoint; None if memory lacks that form."""
        if not isinstance(self._inner, UnquantizedLinearMethod):
            return None
        weight: torch.Tensor = layer.weight
        return weight if weight.numel() > 0 else None

    def drop_backbone(self, layer: nn.Module) -> None:
        """Free the backbone's weight, as loaded or as vLLM repacked it; the 4-bit weight stays."""
        self.has_backbone = False
        layer.cpu_linear = None
        # Of an INT8 projection the only copy of the weight is in oneDNN's own form.
        vars(getattr(getattr(layer, "scheme", None), "kernel", layer)).pop("dnnl_handler", None)
        for name, parameter in list(_weights(layer)):
            empty = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
            setattr(layer, name, nn.Parameter(empty, requires_grad=False))

    def expect_backbone(self, layer: nn.Module) -> None:
        """Make room for the backbone's weight; vLLM's loading then fills and processes it."""
        self._restoring = True
        restore_layer_on_meta(layer, get_layerwise_info(layer))
        initialize_online_processing(layer)

    def apply(
        self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``product``; while torch traces River's forward, an operator that calls it."""
        if torch.compiler.is_compiling():
            if not self._current.routed:
                return self._inner.apply(layer, x, bias)
            out: torch.Tensor = torch.ops.river.linear(
                x, self._index, self.out_features, bias is not None
            )
            return out
        return self.product(layer, x, bias)

    def product(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``x [rows, K] -> [rows, N]``, each row with the weight that its path needs.

        vLLM's Transformers backend has ``[1, rows, K]``.
        """
        due = self._current.due
        path = due.table.path
        if path is not Path.RIVER and not self.has_backbone:
            raise RuntimeError("a row needs a backbone weight that is not in memory")
        river_bias = None if bias is None else self._bias
        if path is Path.BACKBONE:
            if due.dense is not None:
                return due.dense(x, layer.weight, river_bias)
            return self._inner.apply(layer, x, bias)
        if path is Path.RIVER:
            river = self.packed.draft if due.head == "draft" else self.packed.apply
            out = river(x.flatten(0, -2), river_bias)
        else:
            out = due.table.mixed(
                x,
                lambda some: self._inner.apply(layer, some, bias),
                lambda some: self.packed.apply(some, river_bias),
            )
        return out.view(*x.shape[:-1], -1)


def _parts(layer: nn.Module) -> int:
    """How many projections of the checkpoint vLLM has fused in this one."""
    return len(getattr(layer, "output_sizes", (0,)))


def _weights(layer: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters of a projection, without its bias."""
    named = layer.named_parameters(recurse=False)
    return ((name, parameter) for name, parameter in named if name != "bias")
