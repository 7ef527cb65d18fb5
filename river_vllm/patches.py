"""Every function of vLLM that River replaces: the reason, where upstream, and what ends it.

A patch is a function below, marked with where it is needed. ``install`` runs those of a worker or
of a front end where an engine that serves a river is built, each once per process; what a patch of
a worker replaces asks for itself whether the engine that calls it serves a river, since a process
can hold two. ``tests/unit/test_patches.py`` has a test for each that fails once vLLM no longer
needs it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import vllm.envs as vllm_envs
from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable as Inductors
from vllm.compilation import decorators

from river_vllm.graph_key import RiverAdditionalConfig
from river_vllm.registration import serves_river
from river_vllm.request import EXTRA_ARGS_KEY

Place = Literal["front end", "worker"]
_Patch = Callable[[], None]

_patches: dict[Place, list[_Patch]] = {"front end": [], "worker": []}
_installed: set[str] = set()


def _patch(place: Place) -> Callable[[_Patch], _Patch]:
    def listed(function: _Patch) -> _Patch:
        _patches[place].append(function)
        return function

    return listed


def install(place: Place) -> None:
    """Apply every patch of ``place`` that this process does not have yet."""
    for patch in _patches[place]:
        if patch.__name__ not in _installed:
            _installed.add(patch.__name__)
            patch()


@_patch("worker")
def compiled_forwards_are_read_back() -> None:
    """A compiled forward that an earlier start has saved is read, on the CPU too.

    vLLM 0.32 calls ``finalize_loading`` on what it has read (``compilation/decorators.py``,
    ``_try_load_aot_compiled_fn``). Only what its own backend compiles has it; the CPU build
    compiles with inductor alone, whose result is complete as it is. The call fails, and every
    start compiles again ("Compiling model again due to a load failure").

    Ends with the vLLM release that asks before it calls. Upstream:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/compilation/decorators.py#L315
    """
    read_compiled_forwards(under_rivers_key)


def under_rivers_key(vllm_config: Any) -> bool:
    """Whether an engine keeps its forwards under all that they depend on (``graph_key.py``).

    Beside settings of vLLM's own its key lacks River's source and the CPU: what is kept there may
    be another's.
    """
    own = isinstance(vllm_config.additional_config, RiverAdditionalConfig)
    return own and serves_river(vllm_config)


def read_compiled_forwards(applies: Callable[[Any], bool]) -> None:
    """The patch ``compiled_forwards_are_read_back`` for the engines that ``applies`` names.

    Args:
        applies: takes an engine's ``VllmConfig``.
    """
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
    """What inductor saves needs nothing more after it was read."""


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
    """Inside, a forward of a river's engine is read as an earlier start has saved it, or
    ``NotStored`` is raised. Only where ``reads_compiled_forwards``."""
    _stored_only.append(True)
    try:
        yield
    finally:
        _stored_only.pop()


UNREAD_FIELD = (
    f"'{EXTRA_ARGS_KEY}' is taken by River's HTTP server only; this front end is another "
    "(vllm run-batch, Ray, or a vLLM server without VLLM_PLUGINS=river). Leave the field out, and "
    "the engine's own settings hold"
)


@_patch("front end")
def unread_fields_are_refused() -> None:
    """A request whose ``river`` field nothing has taken is refused, with status 400.

    vLLM 0.32 ignores fields that it does not know. River's middleware takes this one out of a
    body; a front end without it would answer with the engine's settings as if they were asked for.

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
