"""Patches of vLLM and torch: the reason for each, its place upstream, and when it can go.

``install`` applies the patches that are marked with a place to the whole process, once, where an
engine with a river is built. Other engines of the process must stay as they were. The other patches
change one object, or hold for the length of a block.

``tests/unit/test_patches.py`` tests them. Where vLLM's own behaviour can be run, a test fails once
vLLM no longer needs the patch.
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
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from river_vllm.compat import (
    _POSSIBLE_KERNELS,
    PlatformEnum,
    register_linear_kernel,
    vllm_envs,
)
from river_vllm.config import PLUGIN, serves_river
from river_vllm.graph_key import RiverAdditionalConfig
from river_vllm.request import EXTRA_ARGS_KEY

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.request import Request

Place = Literal["front end", "worker", "compiling CPU worker", "verifying CPU worker"]
_Patch = Callable[[], None]

_patches: dict[Place, list[_Patch]] = {place: [] for place in get_args(Place)}


def _patch(place: Place) -> Callable[[_Patch], _Patch]:
    def listed(function: _Patch) -> _Patch:
        _patches[place].append(function)
        return function

    return listed


@functools.cache
def install(place: Place) -> None:
    """Apply every patch of ``place``, once in this process."""
    for patch in _patches[place]:
        patch()


@_patch("worker")
def compiled_forwards_are_read_back() -> None:
    """A compiled forward that an earlier start has saved is read, on the CPU too.

    vLLM 0.32 calls ``finalize_loading`` on the forward that it has read
    (``compilation/decorators.py``, ``_try_load_aot_compiled_fn``). On the CPU, inductor alone
    compiles a forward: it is complete, without this method. The call fails, and every start
    compiles again ("Compiling model again due to a load failure").

    Ends with the vLLM release that asks before it calls. Upstream:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/compilation/decorators.py#L315
    """
    read_compiled_forwards(under_rivers_key)


def under_rivers_key(vllm_config: Any) -> bool:
    """Whether the key of an engine's forwards holds all that they depend on (``graph_key.py``).

    With settings of vLLM's own in ``additional_config`` it lacks River's source and the CPU.
    """
    own = isinstance(vllm_config.additional_config, RiverAdditionalConfig)
    return own and serves_river(vllm_config)


def read_compiled_forwards(applies: Callable[[Any], bool]) -> None:
    """Apply the patch above to engines for whose ``VllmConfig`` ``applies`` returns true."""
    from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable as Inductors
    from vllm.compilation import decorators

    inner = decorators._try_load_aot_compiled_fn

    @functools.wraps(inner)
    def load(model: Any, aot_compilation_path: str) -> Any:
        if not applies(model.vllm_config):
            return inner(model, aot_compilation_path)
        Inductors.finalize_loading = _complete
        try:
            found = inner(model, aot_compilation_path)
        finally:
            del Inductors.finalize_loading
        if found is None and _stored_only:
            raise NotStored
        return found

    decorators._try_load_aot_compiled_fn = load


def _complete(_: object, vllm_config: Any) -> None:
    """Do nothing: a forward that inductor has saved is complete once it is read."""


class NotStored(Exception):
    """A forward would have to be compiled."""


_stored_only: list[bool] = []
"""Not empty inside ``stored_forwards_only``."""


def reads_compiled_forwards(vllm_config: Any) -> bool:
    """Whether an engine looks for forwards that an earlier start has compiled."""
    looks = bool(vllm_envs.VLLM_USE_AOT_COMPILE) and not vllm_envs.VLLM_DISABLE_COMPILE_CACHE
    return looks and under_rivers_key(vllm_config)


@contextmanager
def stored_forwards_only() -> Iterator[None]:
    """Inside, a river engine reads a forward that an earlier start has saved, or raises
    ``NotStored``. Only for engines with ``reads_compiled_forwards``."""
    _stored_only.append(True)
    try:
        yield
    finally:
        _stored_only.pop()


@_patch("worker")
def budgets_end_with_their_requests() -> None:
    """The state of a thinking budget ends with its request.

    vLLM 0.32 keeps that state by a request's row of the batch. A request without a budget takes
    over the state of an ended request if it moves to its row
    (``v1/sample/thinking_budget_state.py``, ``sync_batch``): vLLM then forces ends of thoughts into
    its answer. The replacement does what vLLM's function promises, so it suits every engine.

    Ends with the vLLM release that drops the state of a row that another request moves to.
    Upstream: https://github.com/vllm-project/vllm/pull/51890 is the same for two rows that swap.
    """
    from vllm.v1.sample.logits_processor import MoveDirectionality
    from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

    inner = ThinkingBudgetStateHolder.sync_batch

    @functools.wraps(inner)
    def sync_batch(self: ThinkingBudgetStateHolder, batch_update: Any) -> None:
        if not batch_update:
            return
        inner(self, replace(batch_update, moved=()))
        for move in batch_update.moved:
            _, row, direction = move
            ended = () if direction == MoveDirectionality.SWAP else (row,)
            inner(self, replace(batch_update, removed=ended, added=(), moved=(move,)))

    ThinkingBudgetStateHolder.sync_batch = sync_batch


@functools.cache
def kernel_comes_first(kernel: type) -> None:
    """A kernel of River's for 4-bit weights is tried before vLLM's own, once in this process.

    vLLM 0.32 tries kernels in the order of a list, and ``register_linear_kernel`` appends to it.

    Ends with the vLLM release that registers a kernel before its own. Upstream:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/model_executor/kernels/linear/__init__.py
    """
    register_linear_kernel(kernel, PlatformEnum.CPU, "mp")
    kernels = _POSSIBLE_KERNELS[PlatformEnum.CPU]
    kernels.insert(0, kernels.pop())


@_patch("front end")
def sampling_without_drafts_is_taken() -> None:
    """An engine that drafts accepts ``min_p`` and ``logit_bias``; such requests have no drafts.

    vLLM 0.32 refuses both for the whole engine where its configuration speculates
    (``SamplingParams._validate_spec_decode``), since its rejection sampler leaves them out.

    Ends with the vLLM release that samples drafts by them, or asks whether a request drafts.
    Upstream: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/sampling_params.py
    """
    from vllm import SamplingParams

    from river_vllm.speculation import RiverSpeculativeConfig

    inner = SamplingParams._validate_spec_decode

    @functools.wraps(inner)
    def validate(self: SamplingParams, speculative_config: Any) -> None:
        if not isinstance(speculative_config, RiverSpeculativeConfig):
            inner(self, speculative_config)

    SamplingParams._validate_spec_decode = validate


def every_logits_processor_is_there(runner: Any) -> None:
    """A V1 runner that speculates applies ``min_p`` and ``logit_bias`` too.

    vLLM 0.32 makes neither processor where its configuration speculates
    (``v1/sample/logits_processor``, ``build_logitsprocs``). A request without drafts is sampled as
    a bonus token, by all of the runner's processors.

    Ends with the vLLM release that makes them there. Upstream:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/sample/logits_processor/__init__.py
    """
    from vllm.v1.sample.logits_processor import BUILTIN_LOGITS_PROCESSORS, LogitsProcessors
    from vllm.v1.worker.gpu_model_runner import PIN_MEMORY

    runner.input_batch.logitsprocs = LogitsProcessors(
        make(runner.vllm_config, runner.device, PIN_MEMORY) for make in BUILTIN_LOGITS_PROCESSORS
    )


@_patch("compiling CPU worker")
def graphs_are_kept_by_vector_width() -> None:
    """Code that torch has compiled for one vector width is not read on a CPU with another.

    torch 2.13 keeps generated C++ under a key that lacks the instruction set
    (``torch/_inductor/codecache.py``, ``FxGraphHashDetails``). With a cache folder from a CPU with
    AVX-512, another CPU gets loops that step over 16 numbers and write eight: wrong answers, no
    error. The key does hold torch's setting of the vector width.

    Ends with the torch release whose key has the instruction set. Upstream:
    https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_inductor/codecache.py
    """
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    found = pick_vec_isa()
    # No instruction set has vectors of one bit: torch writes plain loops, as without any set.
    config.cpp.simdlen = found.bit_width() if found else 1


@_patch("verifying CPU worker")
def drafted_tokens_keep_their_sampling_settings() -> None:
    """Each drafted token is checked at the temperature, top-k and top-p of its request.

    On the CPU vLLM 0.32 replaces a Triton kernel by C++ (``utils/cpu_triton_utils.py``,
    ``_expand_kernel_impl``). If the result is not int64, the C++ kernel writes to a copy that is
    dropped. Sampled drafts then get arbitrary settings, and nearly all are rejected. The
    replacement returns what vLLM's function promises, so it suits every engine.

    Ends with the vLLM release whose kernel writes into its argument. Upstream:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/utils/cpu_triton_utils.py
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
    """Each request's value once for each of its tokens.

    Args:
        x: ``[requests]``.
        cu_num_tokens: int ``[requests]``, cumulative tokens of the requests.
        num_tokens: of all requests.
        replace_from: a value of ``x`` that becomes ``replace_to``.

    Returns:
        ``[num_tokens]``, of the type of ``x``.
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    expanded = x.repeat_interleave(counts, output_size=num_tokens)
    return expanded.masked_fill(expanded == replace_from, replace_to)


@_patch("front end")
def rivers_routes_need_no_naming() -> None:
    """The HTTP server of an engine with a river has River's routes and takes the ``river`` field.

    vLLM 0.32 loads an endpoint plugin only if ``VLLM_PLUGINS`` names it, and then loads no plugin
    of any group that is not named. A list of all installed plugins would also load endpoint plugins
    that the user has not asked for. So the variable names River during the one call that loads
    endpoint plugins. A user's list stays as it is: River is on it, or would not run here.

    Ends with the vLLM release in which a general plugin can bring its endpoint plugin along.
    Upstream: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/plugins/__init__.py
    (``load_endpoint_plugins``).
    """
    from vllm import plugins

    inner = plugins.load_endpoint_plugins

    @functools.wraps(inner)
    def load_endpoint_plugins(*args: Any, **kwargs: Any) -> Any:
        if vllm_envs.VLLM_PLUGINS is not None:
            return inner(*args, **kwargs)
        os.environ["VLLM_PLUGINS"] = PLUGIN
        try:
            return inner(*args, **kwargs)
        finally:
            del os.environ["VLLM_PLUGINS"]

    plugins.load_endpoint_plugins = load_endpoint_plugins


UNREAD_FIELD = (
    f"'{EXTRA_ARGS_KEY}' is taken by River's HTTP server only; this front end is another "
    "(vllm run-batch or Ray). Leave the field out, and the engine's own settings hold"
)


@_patch("front end")
def unread_fields_are_refused() -> None:
    """A request whose ``river`` field no middleware has taken is refused, with status 400.

    vLLM 0.32 ignores unknown fields. River's middleware takes this one out of a body; a front end
    without the middleware would ignore it, and answer with the engine's settings.

    Ends with the vLLM release that lets a plugin see a request's fields, or refuses unknown ones.
    Upstream: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/entrypoints/serve/engine/protocol.py
    (``OpenAIBaseModel``).
    """
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    for request in (ChatCompletionRequest, CompletionRequest, ResponsesRequest):
        for name in ("to_sampling_params", "to_beam_search_params"):
            inner = getattr(request, name, None)
            if inner is not None:
                setattr(request, name, _refusing(inner))


def _refusing(inner: Callable[..., Any]) -> Callable[..., Any]:
    from vllm.exceptions import VLLMValidationError

    @functools.wraps(inner)
    def parameters(request: Any, *args: Any, **options: Any) -> Any:
        if EXTRA_ARGS_KEY in (request.model_extra or {}):
            raise VLLMValidationError(UNREAD_FIELD, parameter=EXTRA_ARGS_KEY)
        return inner(request, *args, **options)

    return parameters


@contextmanager
def cpu_worker_makes(runner: type) -> Iterator[None]:
    """Inside, a CPU worker's ``init_device`` makes a ``runner`` in the place of vLLM's own class.

    vLLM 0.32's GPU worker makes it in a method that a subclass overrides; its CPU worker does not.

    Ends with the vLLM release whose CPU worker has that method too. Upstream:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/worker/cpu_worker.py
    """
    from vllm.v1.worker import cpu_worker

    with _replaced(cpu_worker, "CPUModelRunner", runner):
        yield


def calls_pass_through(module: Any, call: Callable[..., Any]) -> None:
    """Calls of ``module`` go to ``call(inner, …)``; ``inner(…)`` is the original call.

    vLLM 0.32 compiles one forward of a module and calls it in every step; River has a second one.
    Python looks for ``__call__`` in an object's class, so the module gets a class of its own.

    Ends with the vLLM release that lets a model choose among forwards in a step. Upstream:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/compilation/decorators.py
    (``_support_torch_compile``).
    """
    base = type(module)

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(functools.partial(base.__call__, self), *args, **kwargs)

    module.__class__ = type(base.__name__, (base,), {"__call__": __call__})


@contextmanager
def layers_are_regions(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, torch traces, lowers and compiles one of these layers for all that are alike.

    vLLM 0.32 hands torch a model's layers as one graph: each is traced and compiled again. Python
    looks for ``__call__`` in an object's class, so the layers get other classes.

    torch 2.13 checks which layers are alike, with one mistake: it uses the traced layer's shared
    modules and tensors for all of them (``DUPLICATE_INPUT`` in ``_dynamo/guards.py`` is skipped).
    It does compare classes. So layers that share different things, such as one rotary embedding for
    windows and one for the rest, get different classes.

    Ends with the vLLM release that marks its layers as regions. Upstream:
    https://github.com/vllm-project/vllm/pull/41397
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
    region writes, and assumes that every output argument is a tensor.

    Ends with the torch release that checks whether it is one. Upstream:
    https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_higher_order_ops/utils.py
    (``check_input_alias_and_mutation_return_outputs``).
    """
    from torch._higher_order_ops import utils

    own = utils._get_example_value
    nothing = torch.empty(0)

    def example(node: Any) -> Any:
        return nothing if node is None else own(node)

    with _replaced(utils, "_get_example_value", example):
        yield


@contextmanager
def a_region_takes_any_name() -> Iterator[None]:
    """Inside, torch compiles a region whose calls differ in an opaque object.

    vLLM hands each layer's name to its attention in such an object. torch 2.13's compiler updates
    a region's arguments, and treats a different object as a different kind of argument.

    Ends with the torch release that compares the types of such objects. Upstream:
    https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_inductor/fx_utils.py
    (``FakeTensorUpdater``).
    """
    from torch._inductor import fx_utils
    from torch._library.fake_class_registry import FakeScriptObject

    own = fx_utils._is_fake_tensor_same

    def same(new: Any, old: Any, *args: Any, **kwargs: Any) -> bool:
        if isinstance(new, FakeScriptObject) and isinstance(old, FakeScriptObject):
            return new.script_class_name == old.script_class_name
        return own(new, old, *args, **kwargs)

    with _replaced(fx_utils, "_is_fake_tensor_same", same):
        yield


@contextmanager
def _replaced(module: object, name: str, by: Callable[..., Any]) -> Iterator[None]:
    own = getattr(module, name)
    setattr(module, name, by)
    try:
        yield
    finally:
        setattr(module, name, own)


def block_hashes_come_from(request: Request, hasher: Callable[[Any], list[bytes]]) -> None:
    """``hasher`` hashes all blocks of one of the scheduler's requests, from the first on.

    vLLM 0.32 can salt all of a request's blocks (``cache_salt``), but not only those from a token
    on. Requests that exit could then not share their prompts.

    Ends with the vLLM release that takes a key for a part of a request's blocks. Upstream:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/core/kv_cache_utils.py
    (``generate_block_hash_extra_keys``).
    """
    request._block_hasher = hasher
    request.block_hashes.clear()
    request.update_block_hashes()


_Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]


def engine_client_is_heard(
    client: AsyncLLM,
    generate: _Wrapper,
    get_output_async: _Wrapper,
    add_request: _Wrapper,
    process_outputs: _Wrapper,
    shutdown: _Wrapper,
) -> None:
    """River sees the requests, the outputs and the end of an engine client.

    vLLM 0.32 shows an endpoint plugin neither a request's parameters nor its outputs, nor the end.

    Args:
        client: this one; others of the process stay as they were.
        generate, get_output_async, add_request, process_outputs, shutdown: each takes the method
            of that name (of the client, its engine core or its output processor) and returns the
            replacement.

    Ends with the vLLM release that shows them to an endpoint plugin. Upstream:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/plugins/endpoint_plugins/interface.py
    """
    core, processor = client.engine_core, client.output_processor
    client.generate = generate(client.generate)
    client.shutdown = shutdown(client.shutdown)
    core.get_output_async = get_output_async(core.get_output_async)
    processor.add_request = add_request(processor.add_request)
    processor.process_outputs = process_outputs(processor.process_outputs)


LEFT_TO_THE_SERVER = ("VllmWorker", "EngineCore")
"""How the names of the processes of vLLM's workers and engines begin."""


def the_server_answers_ctrl_c() -> None:
    """In a process of a worker or an engine, SIGINT is ignored; elsewhere nothing changes.

    A terminal sends SIGINT to every process of a server. vLLM 0.32's worker then ends within a step
    (``worker_main``). Its engine treats that as a failure: open requests fail, with a traceback in
    the log. The engine itself cleans up at SIGINT, and the server's SIGTERM ends it in the middle
    (``v1/engine/core.py``, ``run_engine_core``): its shared memory is left behind. Without the
    signal the server stops its engine, and the engine its workers.

    Ends with the vLLM release in which both leave SIGINT to the server. Upstream:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/executor/multiproc_executor.py
    """
    if multiprocessing.current_process().name.startswith(LEFT_TO_THE_SERVER):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def sigterm_is_heard_while_loading(end: Callable[[int, Any], object]) -> Iterator[None]:
    """Inside, a SIGTERM that reaches vLLM's server before it serves goes to the handler ``end``.

    Until uvicorn sets its handler, vLLM 0.32's own raises KeyboardInterrupt
    (``entrypoints/launchers/api_server/entry.py``, ``run_server``). While the server waits for its
    engine, a KeyboardInterrupt only ends the wait (``utils/network_utils.py``, ``zmq_socket_ctx``).
    The signal is lost: the server goes on loading and serves.

    Ends with the vLLM release in which a server that loads can be told to stop. Upstream:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/utils/network_utils.py
    """
    from vllm.entrypoints.launchers.api_server import entry

    inner = entry.run_server_worker

    @functools.wraps(inner)
    async def run_server_worker(*args: Any, **kwargs: Any) -> None:
        # vLLM has set its handler just before this call.
        signal.signal(signal.SIGTERM, end)
        await inner(*args, **kwargs)

    with _replaced(entry, "run_server_worker", run_server_worker):
        yield
