"""One projection in two precisions, chosen by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from river_vllm.errors import RiverError
from river_vllm.kernels.base import PackedLinear
from river_vllm.model.linear import Loading, RiverLinearMethod
from river_vllm.step.table import Current, Pass, StepTable
from tests.unit.model.support import linear

pytestmark = pytest.mark.usefixtures("vllm_world")

K, N, ROWS = 64, 48, 5


class Packed(PackedLinear):
    """A product that is told from the backbone's at once."""

    nbytes = 0

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight.clone() * -3

    def apply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight, bias)


class Twin:
    """The same weights with and without the river."""

    def __init__(self, bias: bool) -> None:
        self.current: Any = Current(2)
        self.leave()
        self.stock, self.dual = linear(K, N, bias), linear(K, N, bias)
        self.weight = self.dual.weight.detach().clone()
        self.bias = self.dual.bias.detach().clone() if bias else None
        self.method = RiverLinearMethod(self.dual.quant_method, Packed, self.current, 0)
        self.dual.quant_method = self.method
        for module in (self.stock, self.dual):
            module.quant_method.process_weights_after_loading(module)
        self.x = torch.randn(ROWS, K, generator=torch.Generator().manual_seed(9)).bfloat16()
        self.backbone = self.stock(self.x)[0]
        self.four_bit = Packed(self.weight).apply(self.x, self.bias)

    def leave(self, *rows: int) -> None:
        """A step in which these rows are on the river."""
        table = StepTable(2, [1] * ROWS, [0.5] * ROWS, [1] * ROWS)
        self.current.due = Pass(table, (), {})
        if rows:
            table.leave(np.isin(np.arange(ROWS), rows), 1)

    def run(self) -> torch.Tensor:
        out: torch.Tensor = self.dual(self.x)[0]
        return out


@pytest.fixture(params=[False, True], ids=["plain", "bias"])
def twin(request: pytest.FixtureRequest) -> Twin:
    return Twin(request.param)


def test_the_backbone_path_is_stock_to_the_bit(twin: Twin) -> None:
    assert torch.equal(twin.run(), twin.backbone)
    assert not torch.equal(twin.backbone, twin.four_bit)


def test_the_river_path_is_the_packed_product(twin: Twin) -> None:
    twin.leave(*range(ROWS))
    assert torch.equal(twin.run(), twin.four_bit)


@pytest.mark.parametrize("rows", [[0], [4], [1, 3], [0, 2, 3, 4]])
def test_rows_on_both_paths_each_take_their_own_weight(twin: Twin, rows: list[int]) -> None:
    twin.leave(*rows)
    out = twin.run()
    stay = [row for row in range(ROWS) if row not in rows]
    assert torch.equal(out[stay], twin.backbone[stay])
    # Fewer rows may take another path through the bf16 product of the stand-in.
    torch.testing.assert_close(out[rows], twin.four_bit[rows], rtol=2**-7, atol=2**-7)
    twin.leave()
    assert torch.equal(twin.run(), twin.backbone), "the table is read on every call"


@pytest.mark.parametrize("rows", [[0, 2], range(ROWS)])
def test_a_batch_of_one_sequence_keeps_its_shape(twin: Twin, rows: list[int]) -> None:
    """vLLM's Transformers backend calls its linears with ``[1, rows, K]``."""
    twin.leave(*rows)
    expected = twin.run()
    assert torch.equal(twin.dual(twin.x[None])[0], expected[None])


def test_the_river_keeps_the_bias_as_loaded() -> None:
    """vLLM's CPU path may turn the module's bias into float32; bf16 kernels take bf16."""
    twin = Twin(bias=True)
    twin.dual.bias.data = twin.dual.bias.data.float() + 1
    twin.leave(*range(ROWS))
    assert torch.equal(twin.run(), twin.four_bit)


def test_a_rank_that_does_not_add_the_bias_adds_none_on_the_river(twin: Twin) -> None:
    """Under tensor parallelism only one rank of a row-parallel projection adds it."""
    twin.leave(*range(ROWS))
    out = twin.method.apply(twin.dual, twin.x, None)
    assert torch.equal(out, Packed(twin.weight).apply(twin.x, None))


def test_rivers_own_product_serves_a_pass_that_names_it() -> None:
    twin = Twin(bias=True)
    twin.current.due.dense = lambda x, weight, bias: bias.expand(len(x), -1)
    assert twin.bias is not None
    twin.dual.bias.data += 1
    assert torch.equal(twin.run(), twin.bias.expand(ROWS, -1)), "the bias as loaded"
    twin.leave(1)
    assert torch.equal(twin.run()[1], twin.four_bit[1])


def held(loading: Loading) -> tuple[Any, RiverLinearMethod]:
    """A projection that waits for its weight."""
    layer: Any = linear(K, N)
    method = RiverLinearMethod(layer.quant_method, Packed, Current(2), 0, loading=loading)
    layer.quant_method = method
    method.hold_on_meta(layer)
    return layer, method


def test_a_projection_that_the_checkpoint_lacks_is_refused() -> None:
    """vLLM would leave it as the memory was."""
    loading = Loading()
    full, _ = held(loading)
    lacking, method = held(loading)
    full.weight.weight_loader(full.weight, torch.zeros(N, K))
    with pytest.raises(RiverError, match="lacks 'weight' of projection"):
        method.process_weights_after_loading(lacking)


def test_a_load_format_that_fills_no_parameter_by_name_is_not_refused() -> None:
    layer: Any = linear(K, N)
    method = RiverLinearMethod(layer.quant_method, Packed, Current(2), 0)
    method.process_weights_after_loading(layer)
    assert method.out_features == N


def test_a_weight_of_another_shape_is_named() -> None:
    layer, _ = held(Loading())
    layer.prefix = "layers.0.proj"
    with pytest.raises(RiverError, match=r"'layers\.0\.proj' has shape \(48, 32\).*\(48, 64\)"):
        layer.weight.weight_loader(layer.weight, torch.zeros(N, K // 2))
