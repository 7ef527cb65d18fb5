"""The patches of vLLM: what each one does, where, and whether it is still needed."""

from __future__ import annotations

import asyncio
import importlib.metadata
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zmq
from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable
from torch._inductor import config as inductor
from torch._inductor.codecache import compiled_fx_graph_hash
from torch._inductor.utils import fresh_cache
from vllm import SamplingParams, plugins
from vllm.compilation import decorators
from vllm.config import SpeculativeConfig, VllmConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.exceptions import VLLMValidationError
from vllm.lora.ops.torch_ops import lora_ops
from vllm.multimodal.media.image import ImageMediaIO
from vllm.platforms import current_platform
from vllm.utils import cpu_triton_utils
from vllm.utils.network_utils import zmq_socket_ctx
from vllm.utils.torch_utils import LayerName
from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys
from vllm.v1.request import Request
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

from river_vllm import patches
from river_vllm.compat import direct_register_custom_op, vllm_envs
from river_vllm.engine_config import RiverAdditionalConfig, RiverSpeculativeConfig
from river_vllm.patches import (
    NotStored,
    compiled_forwards_are_read_back,
    reads_compiled_forwards,
    stored_forwards_only,
)
from tests.support.pictures import broken_png


def own(function: Any) -> Any:
    """vLLM's function, also where an engine of this process has patched it."""
    return getattr(function, "__wrapped__", function)


class Inductors:
    """What the compiler makes of a forward, as it is saved."""

    def serialize(self) -> bytes:
        return b""


def loaded_function() -> Any:
    """A forward that inductor has compiled, as torch reads it from a file."""
    return SimpleNamespace(
        _artifacts=SimpleNamespace(compiled_fn=BundledAOTAutogradSerializableCallable(Inductors())),
        source_info=lambda: SimpleNamespace(inlined_sources=set()),
        disable_guard_check=lambda: None,
    )


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A saved forward, and vLLM's function as it comes."""
    inner = own(decorators._try_load_aot_compiled_fn)
    monkeypatch.setattr(decorators, "_try_load_aot_compiled_fn", inner)
    path = tmp_path / "model"
    path.write_bytes(b"saved")

    def read(file: object, f_globals: object) -> Any:
        return loaded_function()

    monkeypatch.setattr(torch.compiler, "load_compiled_function", read)
    yield str(path)


def model(architecture: str = "RiverLlamaForCausalLM", additional: Any = None) -> Any:
    from vllm.config import CompilationConfig

    config = VllmConfig(compilation_config=CompilationConfig())
    config.additional_config = RiverAdditionalConfig({}) if additional is None else additional
    config.model_config = SimpleNamespace(architecture=architecture)
    return SimpleNamespace(
        vllm_config=config,
        compilation_config=config.compilation_config,
        _is_encoder=False,
        forward=loaded_function,
    )


def load(model: Any, path: str) -> Any:
    return decorators._try_load_aot_compiled_fn(model, path)


def test_a_rivers_compiled_forward_is_read_back_and_torch_stays_as_it_was(saved: str) -> None:
    """The first line fails once vLLM reads it: ``compiled_forwards_are_read_back`` can go then."""
    assert load(model(), saved) is None
    compiled_forwards_are_read_back()
    assert load(model(), saved) is not None
    assert load(model("LlamaForCausalLM"), saved) is None
    assert not hasattr(BundledAOTAutogradSerializableCallable, "finalize_loading")


def test_beside_settings_of_vllms_own_none_is_read_back(
    saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept there may come from another River, or from another CPU."""
    monkeypatch.setenv("VLLM_USE_AOT_COMPILE", "1")
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "0")
    compiled_forwards_are_read_back()
    other = model(additional={"river": {}, "gdn_prefill_backend": "auto"})
    assert load(other, saved) is None
    assert not reads_compiled_forwards(other.vllm_config)
    assert reads_compiled_forwards(model().vllm_config)
    assert not reads_compiled_forwards(model("LlamaForCausalLM").vllm_config)


def test_what_is_not_stored_is_not_compiled_where_only_stored_ones_are_wanted(saved: str) -> None:
    compiled_forwards_are_read_back()
    with stored_forwards_only():
        assert load(model(), saved) is not None
        with pytest.raises(NotStored):
            load(model(), saved + ".elsewhere")
    assert load(model(), saved + ".elsewhere") is None


@contextmanager
def on_a_cpu(vectors: bool) -> Iterator[None]:
    """As torch sees it, with no setting of its vector width."""
    with pytest.MonkeyPatch.context() as patch, inductor.patch({"cpp.simdlen": None}):
        patch.setenv("ATEN_CPU_CAPABILITY", "default")
        if vectors:
            patch.delenv("ATEN_CPU_CAPABILITY")
        yield


def key_of_a_graph() -> str:
    """The key under which torch keeps its compiled code."""
    graph = torch.fx.symbolic_trace(torch.nn.ReLU())
    return compiled_fx_graph_hash(graph, [torch.ones(24)], {}, [])[0]


def test_compiled_code_is_read_by_a_cpu_with_its_vectors_only() -> None:
    """The first half fails once torch's key has the instruction set: the patch can go then."""
    own, patched = [], []
    for vectors in (True, False):
        with on_a_cpu(vectors):
            own.append(key_of_a_graph())
            patches.graphs_are_kept_by_vector_width()
            patched.append(key_of_a_graph())
    assert own[0] == own[1]
    assert patched[0] != patched[1]


class Point:
    """An entry point of an endpoint plugin for every server."""

    value = "module:plugin"

    def __init__(self, name: str) -> None:
        self.name = name

    def load(self) -> Any:
        return lambda: SimpleNamespace(name=self.name, required_tasks=None)


@pytest.fixture
def endpoints(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Two endpoint plugins, and vLLM's function as it comes."""
    monkeypatch.setattr(plugins, "load_endpoint_plugins", own(plugins.load_endpoint_plugins))
    points = [Point("other"), Point("river")]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    # An engine of this process has frozen what vLLM reads from the environment.
    vllm_envs.disable_envs_cache()
    return monkeypatch


def attached() -> list[str]:
    return [plugin.name for plugin in plugins.load_endpoint_plugins(("generate",))]


@pytest.mark.parametrize("given", [None, "river", "river,other", "other"])
def test_rivers_routes_are_attached_unless_a_list_of_plugins_is_given(
    given: str | None, endpoints: pytest.MonkeyPatch
) -> None:
    if given is None:
        endpoints.delenv("VLLM_PLUGINS", raising=False)
    else:
        endpoints.setenv("VLLM_PLUGINS", given)
    # The first line fails once vLLM wants none named: ``rivers_routes_need_no_naming`` can go.
    assert given or attached() == []
    patches.rivers_routes_need_no_naming()
    assert sorted(attached()) == sorted((given or "river").split(","))
    assert os.environ.get("VLLM_PLUGINS") == given, "every other group is loaded as before"


BODIES: list[tuple[Any, dict[str, Any]]] = [
    (ChatCompletionRequest, {"messages": [{"role": "user", "content": "Hi"}]}),
    (CompletionRequest, {"prompt": "Hi"}),
    (ResponsesRequest, {"input": "Hi"}),
]
METHODS = ("to_sampling_params", "to_beam_search_params")


@pytest.fixture
def unpatched() -> Iterator[None]:
    """vLLM as it is, also where an engine of this process has patched it."""
    with pytest.MonkeyPatch.context() as patch:
        for request, _ in BODIES:
            for name in METHODS:
                if (method := getattr(request, name, None)) is not None:
                    patch.setattr(request, name, own(method))
        yield


@pytest.mark.parametrize(("kind", "body"), BODIES)
def test_a_field_that_nothing_has_taken_is_refused(
    unpatched: None, kind: Any, body: dict[str, Any]
) -> None:
    """The first line fails once vLLM does not ignore it: ``unread_fields_are_refused`` can go."""
    request = kind.model_validate({**body, "river": {"threshold": 0.5}})
    assert request.to_sampling_params(8, {}).max_tokens == 8
    patches.unread_fields_are_refused()
    for name in METHODS:
        if hasattr(kind, name):
            with pytest.raises(VLLMValidationError) as caught:
                getattr(request, name)(8, {})
            assert caught.value.parameter == "river"
    assert kind.model_validate(body).to_sampling_params(8, {}).max_tokens == 8


ENDS = torch.tensor([2, 2, 3, 6], dtype=torch.int32)
REQUESTS = [0, 0, 2, 3, 3, 3]
"""The request that each token belongs to; the second request has none."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64])
def test_each_drafted_token_gets_its_requests_value(dtype: torch.dtype) -> None:
    x = torch.tensor([0.75, 5, 0, 0.5]).to(dtype)
    found = patches.expand_batch_to_tokens(x, ENDS, 6, replace_from=-1)
    assert found.dtype == dtype
    assert found.tolist() == x[REQUESTS].tolist()
    replaced = patches.expand_batch_to_tokens(x, ENDS, 6, replace_from=0, replace_to=7)
    assert replaced.tolist() == torch.where(x == 0, 7, x)[REQUESTS].tolist()


def test_vllms_own_kernel_still_loses_them() -> None:
    """Once this fails, ``drafted_tokens_keep_their_sampling_settings`` can go."""
    current_platform.import_kernels()
    own = torch.zeros(6)
    cpu_triton_utils._expand_kernel_impl(own, torch.tensor([0.75, 5.0, 40.5, 0.5]), ENDS, 0, 0)
    assert own.tolist() == [0.0] * 6


def _adapted(patched: bool) -> list[float]:
    """What vLLM's CPU operators add to a row with an adapter and to one without."""
    inputs, output = torch.ones(2, 1), torch.zeros(2, 1)
    expand = lora_ops.bgmv_expand if patched else own(lora_ops.bgmv_expand)
    expand(inputs, torch.tensor([[[2.0]], [[3.0]]]), output, torch.tensor([0, -1]), True)
    return output.flatten().tolist()


def test_a_row_without_an_adapter_gets_none() -> None:
    """Once the last line fails, ``rows_without_an_adapter_keep_the_model`` can go."""
    patches.install("adapting CPU worker")
    assert _adapted(patched=True) == [2.0, 0.0]
    assert _adapted(patched=False) == [2.0, 3.0]


class Layer(torch.nn.Module):
    """As vLLM's attention calls its operator: by a name, with None for what it may write."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        torch.ops.river_tests.attend(x, out, LayerName(self.name), None, x)
        return out + 1


def _attend(
    x: torch.Tensor,
    out: torch.Tensor,
    name: LayerName,
    scale: torch.Tensor | None,
    after: torch.Tensor,
) -> None:
    torch.mul(x, float(name.value), out=out)


_TESTS = torch.library.Library("river_tests", "FRAGMENT")
direct_register_custom_op("attend", _attend, mutates_args=["out", "scale"], target_lib=_TESTS)


def attended(layers: Sequence[torch.nn.Module]) -> list[float]:
    """What all layers make of ones, compiled anew."""
    torch._dynamo.reset()

    def model(x: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            x = layer(x)
        return x

    with torch.inference_mode(), fresh_cache():
        found: list[float] = torch.compile(model, fullgraph=True)(torch.ones(2)).tolist()
    return found


def test_layers_are_regions_with_vllms_attention_in_them() -> None:
    """Where one of the two halves fails torch takes it by itself: that patch can go then."""
    layers = [Layer("2"), Layer("3"), Layer("4")]
    with patches.layers_are_regions(layers):
        with (
            patches.a_region_takes_any_name(),
            pytest.raises(Exception, match="Expected arg_val to be a Tensor"),
        ):
            attended(layers)
        with (
            patches.a_written_argument_may_be_none(),
            pytest.raises(Exception, match="must have consistent values"),
        ):
            attended(layers)
        with patches.a_written_argument_may_be_none(), patches.a_region_takes_any_name():
            assert attended(layers) == [41.0, 41.0]
    assert [type(layer) for layer in layers] == [Layer] * 3


def test_vllm_still_salts_all_blocks_of_a_request_or_none() -> None:
    """Once this fails, ``block_hashes_come_from`` may be able to go."""
    request = Request("id", list(range(8)), SamplingParams(), None, cache_salt="s")
    keys = [generate_block_hash_extra_keys(request, start, start + 4, 0)[0] for start in (0, 4)]
    assert keys == [(("cache_salt", "s"),), None]


def test_a_sigterm_before_the_server_serves_goes_to_the_handler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm.entrypoints.launchers.api_server import entry

    heard: list[int] = []

    async def run_server_worker() -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(entry, "run_server_worker", run_server_worker)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with patches.sigterm_is_heard_while_loading(lambda number, _: heard.append(number)):
            asyncio.run(entry.run_server_worker())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert entry.run_server_worker is run_server_worker


def test_vllm_still_takes_an_interrupt_for_the_end_of_its_wait(tmp_path: Path) -> None:
    """Once this fails, ``sigterm_is_heard_while_loading`` can go."""
    with zmq_socket_ctx(f"ipc://{tmp_path}/socket", zmq.PULL):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("name", "left"), [("VllmWorker-0", True), ("EngineCore_DP1", True), ("MainProcess", False)]
)
def test_ctrl_c_is_the_servers(monkeypatch: pytest.MonkeyPatch, name: str, left: bool) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "name", name)
    before = signal.getsignal(signal.SIGINT)
    try:
        patches.the_server_answers_ctrl_c()
        assert signal.getsignal(signal.SIGINT) == (signal.SIG_IGN if left else before)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_budget_ends_with_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line fails once vLLM drops the state itself: the patch can go then."""
    vllms = own(ThinkingBudgetStateHolder.sync_batch)
    config: Any = SimpleNamespace(reasoning_start_token_ids=[1], reasoning_end_token_ids=[2])

    def budgets() -> list[int]:
        """Rows that have one, after the first of four requests has ended and others have moved."""
        holder = ThinkingBudgetStateHolder(config, 4, 0, torch.device("cpu"), False)
        limits = [1, None, 3, None]
        added = [
            (row, SamplingParams(thinking_token_budget=limit), [1], [])
            for row, limit in enumerate(limits)
        ]
        holder.sync_batch(BatchUpdate(batch_size=4, removed=[], added=added, moved=[]))
        moved = [(3, 0, MoveDirectionality.UNIDIRECTIONAL), (1, 2, MoveDirectionality.SWAP)]
        holder.sync_batch(BatchUpdate(batch_size=3, removed=[], added=[], moved=moved))
        holder.sync_batch(None)
        return sorted(holder._state)

    monkeypatch.setattr(ThinkingBudgetStateHolder, "sync_batch", vllms)
    patches.budgets_end_with_their_requests()
    assert budgets() == [1]
    monkeypatch.setattr(ThinkingBudgetStateHolder, "sync_batch", vllms)
    assert budgets() == [0, 1]


BIASED = [SamplingParams(min_p=0.2), SamplingParams(logit_bias={3: 5.0})]


@pytest.mark.parametrize("params", BIASED, ids=["min_p", "logit_bias"])
def test_sampling_without_drafts_is_taken_by_rivers_engines_only(
    monkeypatch: pytest.MonkeyPatch, params: SamplingParams
) -> None:
    """The second half fails once vLLM takes it: the patch can go then."""
    vllms = own(SamplingParams._validate_spec_decode)
    monkeypatch.setattr(SamplingParams, "_validate_spec_decode", vllms)
    patches.sampling_without_drafts_is_taken()
    params._validate_spec_decode(object.__new__(RiverSpeculativeConfig))
    with pytest.raises(VLLMValidationError, match="not yet supported with speculative decoding"):
        params._validate_spec_decode(object.__new__(SpeculativeConfig))


def test_a_broken_picture_is_a_bad_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second half fails once vLLM says so itself: the patch can go then."""
    png = broken_png()
    vllms = own(ImageMediaIO.load_bytes)
    monkeypatch.setattr(ImageMediaIO, "load_bytes", vllms)
    with pytest.raises(SyntaxError, match="broken PNG"):
        ImageMediaIO().load_bytes(png)
    patches.a_broken_picture_is_a_bad_request()
    with pytest.raises(ValueError, match="Failed to load image: broken PNG"):
        ImageMediaIO().load_bytes(png)
