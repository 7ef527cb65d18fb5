"""One projection, two precisions: vLLM's bf16 weight and its 4-bit twin, chosen by row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from river_vllm.compat import (
    UnquantizedLinearMethod,
    get_layerwise_info,
    initialize_online_processing,
    restore_layer_on_meta,
    to_meta_tensor,
)
from river_vllm.kernels.base import PackedLinear
from river_vllm.step.table import Path
from river_vllm.weights.packing import Packer

if TYPE_CHECKING:
    from river_vllm.model.forward import River


_PROCESSED = "_already_called_process_weights_after_loading"
"""vLLM's own mark; its layer-wise loading takes it off before it processes a layer again."""


class RiverDualLinearMethod(UnquantizedLinearMethod):
    """Replaces the ``quant_method`` of a decoder-layer projection.

    The module keeps its name and its parameters, so loading, tensor parallelism, bias and the
    layer's forward pass stay vLLM's. The 4-bit twin hangs on this object, outside the module
    tree, where neither the weight loader nor a module walk meets it.

    Args:
        river: whose table says which rows of the current layer are on the river.
        index: this projection's place among its layer's.
        packer: quantises and packs this projection's weight.
        keeps_backbone: whether the bf16 weight stays after loading.
    """

    # vLLM's online quantisation: a projection's weight has memory only from when its parts are
    # read until it is processed, one projection at a time (``model_loader/reload/layerwise.py``).
    uses_meta_device = True
    # vLLM's cache of processed weights holds the bf16 form only and would skip the packing.
    supports_pre_processed_weights = False

    def __init__(
        self, river: River, index: int, packer: Packer, keeps_backbone: bool = True
    ) -> None:
        super().__init__()
        self._river = river
        self._index = index
        self._packer = packer
        self._packed: PackedLinear | None = None
        self._bias: torch.Tensor | None = None
        self._restoring = False
        self._keeps_backbone = keeps_backbone
        self.has_backbone = False
        """Whether it is there."""
        self.backbone_nbytes = 0
        """Bytes of the bf16 weight, there or not."""
        self.out_features = 0
        """N of this rank's weight; 0 until it is packed."""

    @property
    def packed(self) -> PackedLinear:
        """The 4-bit twin.

        Raises:
            RuntimeError: the weights have not been loaded.
        """
        if self._packed is None:
            raise RuntimeError("the river's weights are packed after the checkpoint is loaded")
        return self._packed

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Pack before vLLM repacks: on the CPU it drops the bf16 weight (``layers/utils.py``)."""
        # vLLM calls this when the weight is complete, and once more for every module.
        if getattr(layer, _PROCESSED, False):
            return
        setattr(layer, _PROCESSED, True)
        restoring, self._restoring = self._restoring, False
        if not restoring:
            self.backbone_nbytes = layer.weight.nbytes
            self.out_features = layer.weight.shape[0]
            self._packed = self._packer(layer.weight.detach())
            bias = getattr(layer, "bias", None)
            # vLLM may cast the module's own bias to float32 in place.
            self._bias = None if bias is None else bias.detach().clone()
        if restoring or self._keeps_backbone:
            super().process_weights_after_loading(layer)
            self.has_backbone = True
        else:
            self.drop_backbone(layer)

    def drop_backbone(self, layer: torch.nn.Module) -> None:
        """Let go of the bf16 weight, as loaded or as vLLM repacked it; the 4-bit one stays."""
        self.has_backbone = False
        layer.cpu_linear = None
        empty = torch.empty(0, dtype=layer.weight.dtype, device=layer.weight.device)
        layer.weight = torch.nn.Parameter(empty, requires_grad=False)

    def expect_backbone(self, layer: torch.nn.Module) -> None:
        """Make room for the bf16 weight; vLLM's weight loading then fills and processes it."""
        self._restoring = True
        restore_layer_on_meta(layer, get_layerwise_info(layer))
        initialize_online_processing(layer)

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``product``, and for the compiler an operator that calls it when the step runs."""
        if torch.compiler.is_compiling():
            if not self._river.routed.active:
                return super().apply(layer, x, bias)
            out: torch.Tensor = torch.ops.river.linear(
                x, self._index, self.out_features, bias is not None
            )
            return out
        return self.product(layer, x, bias)

    def product(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """``x [rows, K] -> [rows, N]``, each row with the weight its path needs (where a step is on
        both, by ``StepTable.mixed``); vLLM's Transformers backend has ``[1, rows, K]``."""
        table = self._river.table
        if table.path is not Path.RIVER and not self.has_backbone:
            raise RuntimeError("a row needs a backbone weight that is not in memory")
        river_bias = None if bias is None else self._bias
        if table.path is Path.BACKBONE:
            if table.dense is not None:
                return table.dense(x, layer.weight, river_bias)
            return super().apply(layer, x, bias)
        if table.path is Path.RIVER:
            river = self.packed.draft if table.head == "draft" else self.packed.apply
            out = river(x.flatten(0, -2), river_bias)
        else:
            out = table.mixed(
                x,
                lambda some: UnquantizedLinearMethod.apply(self, layer, some, bias),
                lambda some: self.packed.apply(some, river_bias),
            )
        return out.view(*x.shape[:-1], -1)


def hold_on_meta(layer: torch.nn.Module) -> None:
    """Give ``layer.weight`` no memory until its parts are loaded; it is processed right then."""
    weight = to_meta_tensor(layer.weight)
    del layer.weight
    layer.register_parameter("weight", weight)
    initialize_online_processing(layer)
