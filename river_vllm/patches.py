"""Patches of vLLM and torch: the reason for each, its place upstream, and when it can go.

``install`` applies some to the whole process, once, where an engine with a river is built; other
engines of the process must stay as they were. The rest change one object, or hold inside a block.
"Until" says when a patch goes, with its place upstream. Where vLLM's own behaviour can be run, a
test fails once vLLM no longer needs the patch (``tests/unit/test_patches.py``).
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from river_vllm.compat import (
    _POSSIBLE_KERNELS,
    PlatformEnum,
    register_linear_kernel,
    vllm_envs,
)
from river_vllm.config import PLUGIN, serves_river
from river_vllm.engine_config import RiverAdditionalConfig, RiverSpeculativeConfig
from river_vllm.request import EXTRA_ARGS_KEY


def _wrap(owner: Any, name: str, by: Callable[..., Any]) -> Callable[..., Any]:
    """Calls of ``owner.name`` go to ``by(inner, …)``; returns ``inner``, the original."""
    inner: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(inner)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return by(inner, *args, **kwargs)

    setattr(owner, name, wrapper)
    return inner


@contextmanager
def _wrapped(owner: Any, name: str, by: Callable[..., Any]) -> Iterator[None]:
    """``_wrap`` inside the block only."""
    inner = _wrap(owner, name, by)
    try:
        yield
    finally:
        setattr(owner, name, inner)


def under_rivers_key(vllm_config: Any) -> bool:
    """Whether the key of an engine's forwards holds all that they depend on.

    With settings of vLLM's own in ``additional_config`` it lacks River's source and the CPU.
    """
    own = isinstance(vllm_config.additional_config, RiverAdditionalConfig)
    return own and serves_river(vllm_config)


def reads_compiled_forwards(vllm_config: Any) -> bool:
    """Whether an engine looks for forwards that an earlier start has compiled."""
    looks = bool(vllm_envs.VLLM_USE_AOT_COMPILE) and not vllm_envs.VLLM_DISABLE_COMPILE_CACHE
    return looks and under_rivers_key(vllm_config)


def compiled_forwards_are_read_back(applies: Callable[[Any], bool] = under_rivers_key) -> None:
    """A compiled forward that an earlier start has saved is read, on the CPU too.

    vLLM 0.32 calls ``finalize_loading`` on the forward that it has read. On the CPU, inductor alone
    compiles a forward: it is complete, without this method. The call fails, and every start
    compiles again. Until vLLM asks before it calls:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/compilation/decorators.py#L315

    Args:
        applies: whether to change this for the engine of a ``VllmConfig``.
    """
    from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable as Inductors
    from vllm.compilation import decorators

    def load(inner: Callable[..., Any], model: Any, aot_compilation_path: str) -> Any:
        if not applies(model.vllm_config):
            return inner(model, aot_compilation_path)
        Inductors.finalize_loading = lambda *_: None
        try:
            found = inner(model, aot_compilation_path)
        finally:
            del Inductors.finalize_loading
        if found is None and _stored_only:
            raise NotStored
        return found

    _wrap(decorators, "_try_load_aot_compiled_fn", load)


class NotStored(Exception):
    """A forward would have to be compiled."""


_stored_only: list[bool] = []
"""Not empty inside ``stored_forwards_only``."""


@contextmanager
def stored_forwards_only() -> Iterator[None]:
    """Inside, a river engine reads a forward that an earlier start has saved, or raises
    ``NotStored``. Only for engines with ``reads_compiled_forwards``."""
    _stored_only.append(True)
    try:
        yield
    finally:
        _stored_only.pop()


def budgets_end_with_their_requests() -> None:
    """The state of a thinking budget ends with its request.

    vLLM 0.32 keeps that state by a request's row of the batch. A request without a budget takes
    over the state of an ended request if it moves to its row: vLLM then forces ends of thoughts
    into its answer. The replacement suits every engine. Until vLLM drops the state of a row that
    another request moves to; https://github.com/vllm-project/vllm/pull/51890 is the same for two
    rows that swap.
    """
    from vllm.v1.sample.logits_processor import MoveDirectionality
    from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

    def sync_batch(inner: Callable[..., None], holder: Any, batch_update: Any) -> None:
        if not batch_update:
            return
        inner(holder, replace(batch_update, moved=()))
        for move in batch_update.moved:
            _, row, direction = move
            ended = () if direction == MoveDirectionality.SWAP else (row,)
            inner(holder, replace(batch_update, removed=ended, added=(), moved=(move,)))

    _wrap(ThinkingBudgetStateHolder, "sync_batch", sync_batch)


@functools.cache
def kernel_comes_first(kernel: type) -> None:
    """A kernel of River's for 4-bit weights is tried before vLLM's own, once in this process.

    vLLM 0.32 tries kernels in the order of a list, and ``register_linear_kernel`` appends to it.
    Until vLLM registers a kernel before its own:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/model_executor/kernels/linear/__init__.py
    """
    register_linear_kernel(kernel, PlatformEnum.CPU, "mp")
    kernels = _POSSIBLE_KERNELS[PlatformEnum.CPU]
    kernels.insert(0, kernels.pop())


def sampling_without_drafts_is_taken() -> None:
    """An engine that drafts accepts ``min_p`` and ``logit_bias``; such requests have no drafts.

    vLLM 0.32 refuses both for the whole engine where its configuration speculates, since its
    rejection sampler leaves them out. Until vLLM samples drafts by them, or asks whether a request
    drafts: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/sampling_params.py#L1182
    """
    from vllm import SamplingParams

    def validate(inner: Callable[..., None], params: Any, speculative_config: Any) -> None:
        if not isinstance(speculative_config, RiverSpeculativeConfig):
            inner(params, speculative_config)

    _wrap(SamplingParams, "_validate_spec_decode", validate)


def every_logits_processor_is_there(runner: Any) -> None:
    """A V1 runner that speculates applies ``min_p`` and ``logit_bias`` too.

    vLLM 0.32 makes neither processor where its configuration speculates. A request without drafts
    is sampled as a bonus token, by all of the runner's processors. Until vLLM makes them there:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/sample/logits_processor/__init__.py
    """
    from vllm.v1.sample.logits_processor import BUILTIN_LOGITS_PROCESSORS, LogitsProcessors
    from vllm.v1.worker.gpu_model_runner import PIN_MEMORY

    runner.input_batch.logitsprocs = LogitsProcessors(
        make(runner.vllm_config, runner.device, PIN_MEMORY) for make in BUILTIN_LOGITS_PROCESSORS
    )


def graphs_are_kept_by_vector_width() -> None:
    """Code that torch has compiled for one vector width is not read on a CPU with another.

    torch 2.13 keeps generated C++ under a key that lacks the instruction set. With a cache folder
    from a CPU with AVX-512, another CPU gets loops that step over 16 numbers and write eight: wrong
    answers, no error. The key does hold torch's setting of the vector width. Until torch's key has
    the instruction set:
    https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_inductor/codecache.py#L1220
    """
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    found = pick_vec_isa()
    # No instruction set has vectors of one bit: torch writes plain loops, as without any set.
    config.cpp.simdlen = found.bit_width() if found else 1


def drafted_tokens_keep_their_sampling_settings() -> None:
    """Each drafted token is checked at the temperature, top-k and top-p of its request.

    On the CPU vLLM 0.32 replaces a Triton kernel by C++. If the result is not int64, the C++ kernel
    writes to a copy that is dropped. Sampled drafts then get arbitrary settings, and nearly all are
    rejected. The replacement suits every engine. Until the kernel writes into its argument:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/utils/cpu_triton_utils.py#L390
    """
    from vllm.v1.sample import rejection_sampler

    rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens


def expand_batch_to_tokens(
    x: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    num_tokens: int,
    replace_from: int = 0,
    replace_to: int = 0,
) -> torch.Tensor:
    """Each request's value once for each of its tokens, ``[num_tokens]``, of the type of ``x``.

    Args:
        x: ``[requests]``; its values ``replace_from`` become ``replace_to``.
        cu_num_tokens: int ``[requests]``, cumulative tokens of the requests.
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    expanded = x.repeat_interleave(counts, output_size=num_tokens)
    return expanded.masked_fill(expanded == replace_from, replace_to)


def rows_without_an_adapter_keep_the_model() -> None:
    """On the CPU a row without a LoRA adapter gets none, whatever is beside it.

    vLLM 0.32 marks such a row by the index −1, and its CPU operators index the adapters by it: the
    row gets the adapter in the last place. Until they skip such rows:
    https://github.com/vllm-project/vllm/pull/48421
    """
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    def expand(
        inner: Callable[..., None],
        inputs: torch.Tensor,
        weights: torch.Tensor,
        output: torch.Tensor,
        adapters: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        inputs = inputs.masked_fill((adapters < 0).unsqueeze(1), 0.0)
        inner(inputs, weights, output, adapters, *args, **kwargs)

    for name in ("bgmv_expand", "bgmv_expand_slice"):
        _wrap(lora_ops, name, expand)
        setattr(punica_cpu, name, getattr(lora_ops, name))


def rivers_routes_need_no_naming() -> None:
    """The HTTP server of an engine with a river has River's routes and takes the ``river`` field.

    vLLM 0.32 loads an endpoint plugin only if ``VLLM_PLUGINS`` names it, and then loads no plugin
    of any group that is not named. So the variable names River during the one call that loads
    endpoint plugins. A user's list stays as it is: River is on it, or would not run here. Until a
    general plugin can bring its endpoint plugin along:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/plugins/__init__.py#L93
    """
    from vllm import plugins

    def load(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if vllm_envs.VLLM_PLUGINS is not None:
            return inner(*args, **kwargs)
        os.environ["VLLM_PLUGINS"] = PLUGIN
        try:
            return inner(*args, **kwargs)
        finally:
            del os.environ["VLLM_PLUGINS"]

    _wrap(plugins, "load_endpoint_plugins", load)


def unread_fields_are_refused() -> None:
    """A request whose ``river`` field no middleware has taken is refused, with status 400.

    vLLM 0.32 ignores unknown fields. River's middleware takes this one out of a body; a front end
    without the middleware would ignore it, and answer with the engine's settings. Until vLLM lets a
    plugin see a request's fields, or refuses unknown ones:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/entrypoints/serve/engine/protocol.py#L37
    """
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.exceptions import VLLMValidationError

    def parameters(inner: Callable[..., Any], request: Any, *args: Any, **kwargs: Any) -> Any:
        if EXTRA_ARGS_KEY in (request.model_extra or {}):
            raise VLLMValidationError(
                f"'{EXTRA_ARGS_KEY}' is taken by River's HTTP server only; this front end is "
                "another (vllm run-batch or Ray). Leave the field out, and the engine's own "
                "settings hold",
                parameter=EXTRA_ARGS_KEY,
            )
        return inner(request, *args, **kwargs)

    for request in (ChatCompletionRequest, CompletionRequest, ResponsesRequest):
        for name in ("to_sampling_params", "to_beam_search_params"):
            if hasattr(request, name):
                _wrap(request, name, parameters)


def a_broken_picture_is_a_bad_request() -> None:
    """A picture that cannot be decoded is answered with HTTP 400, whatever Pillow raises.

    vLLM 0.32 takes an ``OSError`` for a bad picture. Pillow raises others too, such as
    ``SyntaxError`` for a broken chunk of a PNG and ``DecompressionBombError``: vLLM then answers
    with 500. The replacement suits every engine. Until vLLM takes them for a bad picture:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/multimodal/media/image.py#L94
    """
    from vllm.multimodal.media.image import ImageMediaIO

    def load(inner: Callable[..., Any], media: Any, data: bytes) -> Any:
        try:
            return inner(media, data)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"Failed to load image: {error}") from error

    _wrap(ImageMediaIO, "load_bytes", load)


Place = Literal[
    "front end", "worker", "adapting CPU worker", "compiling CPU worker", "verifying CPU worker"
]
_PATCHES: dict[Place, tuple[Callable[[], None], ...]] = {
    "front end": (
        sampling_without_drafts_is_taken,
        rivers_routes_need_no_naming,
        unread_fields_are_refused,
        a_broken_picture_is_a_bad_request,
    ),
    "worker": (
        compiled_forwards_are_read_back,
        budgets_end_with_their_requests,
    ),
    "adapting CPU worker": (rows_without_an_adapter_keep_the_model,),
    "compiling CPU worker": (graphs_are_kept_by_vector_width,),
    "verifying CPU worker": (drafted_tokens_keep_their_sampling_settings,),
}


@functools.cache
def install(place: Place) -> None:
    """Apply every patch of ``place``, once in this process."""
    for patch in _PATCHES[place]:
        patch()


@contextmanager
def cpu_worker_makes(runner: type) -> Iterator[None]:
    """Inside, a CPU worker's ``init_device`` makes a ``runner`` in the place of vLLM's own class.

    vLLM 0.32's GPU worker makes it in a method that a subclass overrides. Until its CPU worker has
    that method:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/worker/cpu_worker.py
    """
    from vllm.v1.worker import cpu_worker

    own, cpu_worker.CPUModelRunner = cpu_worker.CPUModelRunner, runner
    try:
        yield
    finally:
        cpu_worker.CPUModelRunner = own


@contextmanager
def runner_drafts_with(drafter: type) -> Iterator[None]:
    """Inside, a V1 runner is made with a ``drafter`` in the place of vLLM's ``DraftModelProposer``.

    vLLM 0.32's runner names the class when it is made, and the class refuses a model with M-RoPE.
    Until the runner has a method that makes its drafter:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/worker/gpu_model_runner.py#L612
    """
    from vllm.v1.worker import gpu_model_runner

    own, gpu_model_runner.DraftModelProposer = gpu_model_runner.DraftModelProposer, drafter
    try:
        yield
    finally:
        gpu_model_runner.DraftModelProposer = own


@contextmanager
def keys_are_split(allowed: bool) -> Iterator[None]:
    """Inside, unless ``allowed``, vLLM's CPU attention sums over a request's keys in one order.

    vLLM splits the keys of a request among threads, depending on the other requests of the step.
    Its ``VLLM_CPU_ATTN_SPLIT_KV`` holds for every step, also where stock vLLM's bits are needed.
    Until the builder of the attention's metadata takes it as an argument:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/attention/backends/cpu_attn.py#L264
    """
    if allowed:
        yield
        return
    held = vars(vllm_envs)
    # The module computes its variables where it has no attribute of their name.
    held["VLLM_CPU_ATTN_SPLIT_KV"] = False
    try:
        yield
    finally:
        del held["VLLM_CPU_ATTN_SPLIT_KV"]


def calls_pass_through(module: Any, call: Callable[..., Any]) -> None:
    """Calls of ``module`` go to ``call(inner, …)``; ``inner(…)`` is the original call.

    vLLM 0.32 compiles one forward of a module and calls it in every step; River has a second one.
    Python looks for ``__call__`` in an object's class, so the module gets a class of its own.
    Until vLLM lets a model choose among forwards in a step:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/compilation/decorators.py#L344
    """
    base = type(module)

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(functools.partial(base.__call__, self), *args, **kwargs)

    module.__class__ = type(base.__name__, (base,), {"__call__": __call__})


@contextmanager
def layers_are_regions(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, torch traces, lowers and compiles one of these layers for all that are alike.

    vLLM 0.32 hands torch a model's layers as one graph: each is traced and compiled again. Python
    looks for ``__call__`` in an object's class, so the layers get other classes. Until vLLM marks
    its layers as regions: https://github.com/vllm-project/vllm/pull/41397

    torch 2.13 uses the traced layer's shared modules and tensors for all layers that it takes for
    alike (``DUPLICATE_INPUT`` in ``_dynamo/guards.py`` is skipped). It does compare classes. So
    layers that share different things, such as one rotary embedding for windows and one for the
    rest, get different classes.
    """
    region = torch.compiler.nested_compile_region(_call_layer, max_reuse_entries=len(layers))
    kinds = [(type(layer), shared) for layer, shared in zip(layers, _shared(layers), strict=True)]
    marked = {kind: type(kind[0].__name__, kind[:1], {"__call__": region}) for kind in kinds}
    for layer, kind in zip(layers, kinds, strict=True):
        layer.__class__ = marked[kind]
    try:
        yield
    finally:
        for layer, (cls, _) in zip(layers, kinds, strict=True):
            layer.__class__ = cls


def _shared(layers: Sequence[nn.Module]) -> list[frozenset[int]]:
    """For each layer, the ids of the modules and tensors that it shares with another layer."""
    parts = [
        {id(part) for part in (*layer.modules(), *layer.parameters(), *layer.buffers())}
        for layer in layers
    ]
    holders = Counter(part for those in parts for part in those)
    return [frozenset(part for part in those if holders[part] > 1) for those in parts]


def _call_layer(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return nn.Module.__call__(layer, *args, **kwargs)


@contextmanager
def a_written_argument_may_be_none() -> Iterator[None]:
    """Inside, torch compiles a region with an operator that gets None for an output argument.

    vLLM's attention has such an argument (``output_block_scale``). torch 2.13 checks which inputs a
    region writes, and assumes that every output argument is a tensor. Until torch checks that:
    https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_higher_order_ops/utils.py#L1066
    """
    from torch._higher_order_ops import utils

    nothing = torch.empty(0)

    def example(inner: Callable[..., Any], node: Any) -> Any:
        return nothing if node is None else inner(node)

    with _wrapped(utils, "_get_example_value", example):
        yield


@contextmanager
def a_region_takes_any_name() -> Iterator[None]:
    """Inside, torch compiles a region whose calls differ in an opaque object.

    vLLM hands each layer's name to its attention in such an object. torch 2.13's compiler updates
    a region's arguments, and treats a different object as a different kind of argument. Until torch
    compares the types of such objects:
    https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_inductor/fx_utils.py#L408
    """
    from torch._inductor import fx_utils
    from torch._library.fake_class_registry import FakeScriptObject

    def same(inner: Callable[..., bool], new: Any, old: Any, *args: Any, **kwargs: Any) -> bool:
        if isinstance(new, FakeScriptObject) and isinstance(old, FakeScriptObject):
            return new.script_class_name == old.script_class_name
        return inner(new, old, *args, **kwargs)

    with _wrapped(fx_utils, "_is_fake_tensor_same", same):
        yield


def block_hashes_come_from(request: Any, hasher: Callable[[Any], list[bytes]]) -> None:
    """``hasher`` hashes all blocks of one of the scheduler's requests, from the first on.

    vLLM 0.32 can salt all of a request's blocks (``cache_salt``), but not only those from a token
    on. Requests that exit could then not share their prompts. Until vLLM takes a key for a part of
    a request's blocks:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/core/kv_cache_utils.py#L625
    """
    request._block_hasher = hasher
    request.block_hashes.clear()
    request.update_block_hashes()


def engine_client_is_heard(client: Any, **hooks: Callable[..., Any]) -> None:
    """River sees the requests, the outputs and the end of an engine client, and of no other.

    Until vLLM shows an endpoint plugin all three:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/plugins/endpoint_plugins/interface.py

    Args:
        hooks: for each method below: called with it and its arguments, in its place.
    """
    core, processor = client.engine_core, client.output_processor
    for owner, name in (
        (client, "generate"),
        (client, "shutdown"),
        (core, "get_output_async"),
        (processor, "add_request"),
        (processor, "process_outputs"),
    ):
        setattr(owner, name, functools.partial(hooks[name], getattr(owner, name)))


def the_server_answers_ctrl_c() -> None:
    """In a process of a worker or an engine, SIGINT is ignored; elsewhere nothing changes.

    A terminal sends SIGINT to every process of a server. vLLM 0.32's worker then ends within a
    step, and open requests fail. Its engine cleans up at SIGINT, and the server's SIGTERM ends it
    in the middle: its shared memory is left behind. Without the signal the server stops its engine,
    and the engine its workers. Until both leave SIGINT to the server:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/executor/multiproc_executor.py#L860
    """
    if multiprocessing.current_process().name.startswith(("VllmWorker", "EngineCore")):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def sigterm_is_heard_while_loading(end: Callable[[int, Any], object]) -> Iterator[None]:
    """Inside, a SIGTERM that reaches vLLM's server before it serves goes to the handler ``end``.

    Until uvicorn sets its handler, vLLM 0.32's own raises KeyboardInterrupt (``run_server``). While
    the server waits for its engine, a KeyboardInterrupt only ends the wait (``zmq_socket_ctx``).
    The signal is lost: the server goes on loading and serves. Until a server that loads can be told
    to stop:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/utils/network_utils.py#L452
    """
    from vllm.entrypoints.launchers.api_server import entry

    async def serve(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        # vLLM has set its handler just before this call.
        signal.signal(signal.SIGTERM, end)
        await inner(*args, **kwargs)

    with _wrapped(entry, "run_server_worker", serve):
        yield
