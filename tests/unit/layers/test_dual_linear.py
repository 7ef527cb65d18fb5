"""One projection in two precisions, chosen by row."""

from __future__ import annotations

import pytest
import torch

from river_vllm.kernels.base import PackedLinear
from river_vllm.layers.dual_linear import RiverDualLinearMethod
from river_vllm.router.plan import RowPlan
from tests.unit.layers.support import linear

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
        self.plan = RowPlan()
        self.stock, self.dual = linear(K, N, bias), linear(K, N, bias)
        self.weight = self.dual.weight.detach().clone()
        self.bias = self.dual.bias.detach().clone() if bias else None
        self.method = RiverDualLinearMethod(self.plan, 0, Packed)
        self.dual.quant_method = self.method
        for module in (self.stock, self.dual):
            module.quant_method.process_weights_after_loading(module)
        self.x = torch.randn(ROWS, K, generator=torch.Generator().manual_seed(9)).bfloat16()
        self.backbone = self.stock(self.x)[0]
        self.river = Packed(self.weight).apply(self.x, self.bias)

    def run(self) -> torch.Tensor:
        out: torch.Tensor = self.dual(self.x)[0]
        return out


@pytest.fixture(params=[False, True], ids=["plain", "bias"])
def twin(request: pytest.FixtureRequest) -> Twin:
    return Twin(request.param)


def test_the_backbone_path_is_stock_to_the_bit(twin: Twin) -> None:
    assert torch.equal(twin.run(), twin.backbone)
    assert not torch.equal(twin.backbone, twin.river)


def test_the_river_path_is_the_packed_product(twin: Twin) -> None:
    twin.plan.all_river()
    assert torch.equal(twin.run(), twin.river)


@pytest.mark.parametrize("rows", [[0], [4], [1, 3], [0, 2, 3, 4]])
def test_mixed_rows_each_take_their_own_weight(twin: Twin, rows: list[int]) -> None:
    twin.plan.mixed(torch.tensor(rows))
    out = twin.run()
    stay = [row for row in range(ROWS) if row not in rows]
    assert torch.equal(out[stay], twin.backbone[stay])
    # Fewer rows may take another path through the bf16 product of the stand-in.
    torch.testing.assert_close(out[rows], twin.river[rows], rtol=2**-7, atol=2**-7)


def test_rows_that_are_split_each_take_their_own_weight(twin: Twin) -> None:
    twin.plan.mixed(torch.tensor([1, 3]), torch.tensor([0, 2, 4]))
    out = twin.run()
    torch.testing.assert_close(out[[0, 2, 4]], twin.backbone[[0, 2, 4]], rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(out[[1, 3]], twin.river[[1, 3]], rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("rows", [[0, 2], None])
def test_a_batch_of_one_sequence_keeps_its_shape(twin: Twin, rows: list[int] | None) -> None:
    """vLLM's Transformers backend calls its linears with ``[1, rows, K]``."""
    if rows is None:
        twin.plan.all_river()
    else:
        twin.plan.mixed(torch.tensor(rows))
    expected = twin.run()
    assert torch.equal(twin.dual(twin.x[None])[0], expected[None])


def test_the_plan_is_read_on_every_call(twin: Twin) -> None:
    twin.plan.mixed(torch.tensor([2]))
    twin.run()
    twin.plan.reset()
    assert torch.equal(twin.run(), twin.backbone)


def test_the_packer_gets_the_loaded_weight_before_vllm_repacks_it(twin: Twin) -> None:
    assert isinstance(twin.method.packed, Packed)
    assert torch.equal(twin.method.packed.weight, twin.weight * -3)


def test_the_river_keeps_the_bias_as_loaded() -> None:
    """vLLM's CPU path may turn the module's bias into float32; bf16 kernels take bf16."""
    twin = Twin(bias=True)
    twin.dual.bias.data = twin.dual.bias.data.float() + 1
    twin.plan.all_river()
    assert torch.equal(twin.run(), twin.river)


def test_a_rank_that_does_not_add_the_bias_adds_none_on_the_river(twin: Twin) -> None:
    """Under tensor parallelism only one rank of a row-parallel projection adds it."""
    twin.plan.all_river()
    out = twin.method.apply(twin.dual, twin.x, None)
    assert torch.equal(out, Packed(twin.weight).apply(twin.x, None))


def test_use_before_loading_is_an_error() -> None:
    method = RiverDualLinearMethod(RowPlan(), 0, Packed)
    with pytest.raises(RuntimeError, match="after the checkpoint is loaded"):
        _ = method.packed


def test_vllm_may_not_skip_the_packing_with_cached_weights() -> None:
    assert not RiverDualLinearMethod.supports_pre_processed_weights
