"""Which architectures have a place for a river, and where its layers are; others are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from river_vllm.architectures import ARCHITECTURES, why_not
from river_vllm.compat import (
    AttentionLayerBase,
    CompilationMode,
    MoERunnerInterface,
    PrefillPrefixLMAttention,
)
from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError, UnsupportedModelError
from river_vllm.kernels.native.library import backend
from river_vllm.model import attach as module
from river_vllm.model.attach import attach, decoder_layers, projections
from river_vllm.model.forward import StateArguments, state_arguments
from river_vllm.model.head import lm_head
from river_vllm.plugin.naming import river_architecture
from server.models import DRAFTED
from tests.unit.model.support import Layer, Model, NoAttention, linear

pytestmark = pytest.mark.usefixtures("vllm_world")


def test_the_layers_are_found_wherever_they_are_and_in_order() -> None:
    inner = Model(3, 32)
    outer = nn.Module()
    outer.language = nn.ModuleDict({"model": inner})
    outer.first_half = nn.ModuleList(inner.layers)
    outer.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    assert decoder_layers(outer, 3) == list(inner.layers)


class Oddity(nn.Module):
    """A model of a shape that River does not know."""

    def __init__(self, *lists: list[nn.Module]) -> None:
        super().__init__()
        self.lists = nn.ModuleList(nn.ModuleList(layers) for layers in lists)


def attention_layer(count: int) -> nn.Module:
    layer = nn.Module()
    layer.attentions = nn.ModuleList(NoAttention() for _ in range(count))
    return layer


@pytest.mark.parametrize(
    ("lists", "reason"),
    [
        ([[1, 1]], "expected one list of 3 .* found 0"),
        ([[1, 1, 1], [1, 1, 1]], "expected one list of 3 .* found 2"),
        ([[0, 0, 0]], "found 0"),
        ([[1, 2, 1]], "layer 1 has 2 attention modules"),
    ],
)
def test_a_model_of_another_shape_is_refused_by_name(lists: list[list[int]], reason: str) -> None:
    """Here by the numbers of attention modules in its layers."""
    model = Oddity(*([attention_layer(count) for count in counts] for counts in lists))
    with pytest.raises(UnsupportedModelError, match=f"Oddity: .*{reason}"):
        decoder_layers(model, 3)


class NoExperts(MoERunnerInterface):
    """Has the type that River looks for, and none of its state."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


NoExperts.__abstractmethods__ = frozenset()


class Recurrent(nn.Module, AttentionLayerBase):
    def get_attn_backend(self) -> Any: ...

    def get_kv_cache_spec(self, vllm_config: Any) -> Any: ...


class Prefix(PrefillPrefixLMAttention):
    def __init__(self) -> None:
        nn.Module.__init__(self)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (Recurrent, "Recurrent is no causal attention over K/V"),
        (Prefix, "Prefix is no causal attention"),
        (NoExperts, "its layers are mixtures of experts"),
    ],
)
def test_a_part_that_a_river_cannot_run_is_refused(part: type[nn.Module], reason: str) -> None:
    """Where the configuration has not told it."""
    model = Model(3, 32)
    model.layers[1].other = part()
    with pytest.raises(UnsupportedModelError, match=f"Model: {reason}"):
        decoder_layers(model, 3)


def test_a_layer_may_have_no_attention() -> None:
    model = Oddity([attention_layer(count) for count in (1, 0, 1)])
    assert decoder_layers(model, 3) == list(model.lists[0])


class NoResidual(nn.Module):
    def forward(self, hidden_states: torch.Tensor, positions: torch.Tensor) -> Any: ...


class ResidualFirst(nn.Module):
    def forward(self, residual: torch.Tensor, hidden_states: torch.Tensor) -> Any: ...


class NoHidden(nn.Module):
    def forward(self, x: torch.Tensor) -> Any: ...


def test_state_arguments_come_from_the_signature() -> None:
    assert state_arguments(Layer(32, 0)) == StateArguments(hidden=1, residual=2)
    assert state_arguments(ResidualFirst()) == StateArguments(hidden=1, residual=0)
    assert state_arguments(NoResidual()) == StateArguments(hidden=0, residual=None)
    assert state_arguments(Layer(32, 0), stale_residual=True) == StateArguments(1, None)
    with pytest.raises(UnsupportedModelError, match=r"NoHidden.*'hidden_states'.*'x'"):
        state_arguments(NoHidden())


def test_state_is_read_and_replaced_in_either_kind_of_argument() -> None:
    where = StateArguments(hidden=1, residual=2)
    p, h, r, other = torch.zeros(1), torch.ones(1, 1), torch.full((1, 1), 2.0), torch.zeros(1, 1)
    for args, kwargs in (((p, h, r), {}), ((p,), {"hidden_states": h, "residual": r})):
        assert where.read(args, kwargs) == (h, r)
        assert where.read(*where.replace(args, kwargs, other)) == (other, r)
    assert where.read((p, h), {"residual": r}) == (h, r)
    assert where.read((p, h), {}) == (h, None)
    assert StateArguments(0, None).read((h, r), {"residual": r}) == (h, None)


def test_a_batch_of_one_sequence_is_read_as_rows() -> None:
    where = StateArguments(0, None)
    hidden, residual = where.read((torch.ones(1, 5, 3),), {})
    assert (hidden.shape, residual) == ((5, 3), None)
    args, _ = where.replace((torch.ones(1, 5, 3),), {}, hidden + 1)
    assert torch.equal(args[0], torch.full((1, 5, 3), 2.0))


def test_the_lm_head_may_be_inside_a_language_model() -> None:
    text, image = nn.Module(), nn.Module()
    assert lm_head(text) is None
    text.lm_head = nn.Linear(2, 3)
    image.get_language_model = lambda: text
    assert lm_head(text) is lm_head(image) is text.lm_head


def test_every_linear_of_a_layer_is_a_projection() -> None:
    layer = Layer(32, 0)
    layer.mlp = nn.ModuleDict({"up": linear(32, 64)})
    with pytest.raises(UnsupportedModelError, match="NoHidden has no linear projections"):
        projections(NoHidden())
    assert projections(layer) == [("proj", layer.proj), ("mlp.up", layer.mlp["up"])]


LAYERS, WIDTH = 3, 64


@pytest.fixture
def model() -> Model:
    return Model(LAYERS, WIDTH)


def build(model: Model, folder: Path, **settings: Any) -> None:
    vllm_config: Any = SimpleNamespace(
        model_config=SimpleNamespace(
            dtype=torch.bfloat16,
            get_total_num_hidden_layers=lambda: LAYERS,
            model=str(folder),
            architecture="RiverLlamaForCausalLM",
            hf_config=SimpleNamespace(),
        ),
        device_config=SimpleNamespace(device="cpu"),
        compilation_config=SimpleNamespace(static_forward_context={}, mode=CompilationMode.NONE),
    )
    config = RiverConfig(**{"quantizer": "rtn", "kernel": "torch", **settings})
    attach(model, config, vllm_config, ())


def test_a_quantised_projection_is_refused_by_name(model: Model, tmp_path: Path) -> None:
    class Fp8Method:
        pass

    model.layers[1].proj.prefix = "layers.1.proj"
    model.layers[1].proj.quant_method = Fp8Method()
    with pytest.raises(UnsupportedModelError, match=r"'layers\.1\.proj' is Fp8Method"):
        build(model, tmp_path)


@pytest.mark.skipif(backend() is None, reason="the kernel library is not built")
def test_ranks_on_cpus_of_two_kinds_are_refused(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: 2)
    said = []
    group = SimpleNamespace(broadcast_object=lambda own, src: said.append(own) or own)
    monkeypatch.setattr(module, "get_tp_group", lambda: group)
    build(model, tmp_path, kernel="auto")
    first = ("scalar", *said[0][1:])
    group.broadcast_object = lambda own, src: first
    with pytest.raises(RiverError, match=f"rank 0 has {'/'.join(first)} .*{'/'.join(said[0])}"):
        build(Model(LAYERS, WIDTH), tmp_path, kernel="auto")


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "BloomForCausalLM"])
def test_the_prefix_is_there_once(name: str) -> None:
    assert river_architecture(name) == f"River{name}"
    assert river_architecture(f"River{name}") == f"River{name}"


def test_an_architecture_that_vllm_lacks_runs_by_transformers_or_is_refused() -> None:
    found = river_architecture("BioGptForCausalLM", SimpleNamespace())
    assert found == "RiverTransformersForCausalLM"
    with pytest.raises(UnsupportedModelError, match=r"'NewForCausalLM' .*no model class") as error:
        river_architecture("NewForCausalLM", SimpleNamespace())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"moe_num_experts": [64, 64]}, "mixture of experts"),
        ({"n_routed_experts": 64, "kv_lora_rank": 512}, "mixture of experts"),
        ({"num_experts": 1}, None),
        ({"num_experts": 0, "layer_types": ["full_attention", "sliding_attention"]}, None),
        ({"layer_types": ["linear_attention", "full_attention"]}, "state-space"),
        ({"layer_types": ["conv", "full_attention"]}, "state-space or convolution"),
        ({"kv_lora_rank": 256}, "latent attention"),
        ({"kv_lora_rank": None}, None),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"hidden_size_per_layer_input": 256}, "per-layer embeddings"),
        ({}, None),
    ],
    ids=str,
)
def test_what_its_shape_says_is_the_reason(shape: dict[str, Any], reason: str | None) -> None:
    # Alone, and as the language model inside a multimodal one.
    for config in (SimpleNamespace(**shape), SimpleNamespace(text_config=SimpleNamespace(**shape))):
        if reason is None:
            assert why_not(config) is None
            assert river_architecture("BloomForCausalLM", config)
            continue
        assert str(why_not(config)).startswith(reason)
        with pytest.raises(UnsupportedModelError, match=f"'BloomForCausalLM' .*{reason}"):
            river_architecture("BloomForCausalLM", config)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("qwen3_moe", "mixture of experts"),
        ("jamba", "state-space"),
        ("minicpm3", "latent attention"),
        ("t5", "encoder-decoder"),
        ("gemma4_text", "per-layer embeddings"),
        ("gpt2", None),
    ],
)
def test_transformers_own_configurations_say_it(model_type: str, reason: str | None) -> None:
    from transformers import AutoConfig

    found = why_not(AutoConfig.for_model(model_type))
    assert found is None if reason is None else str(found).startswith(reason)


def test_vllm_has_every_architecture() -> None:
    from vllm.model_executor.models.registry import ModelRegistry

    assert {*ARCHITECTURES, *DRAFTED} <= set(ModelRegistry.models)
