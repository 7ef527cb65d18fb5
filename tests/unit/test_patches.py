"""The patches of vLLM: what each one does, in which engines, and whether it is still needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable
from vllm.compilation import decorators
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.exceptions import VLLMValidationError

from river_vllm import patches
from river_vllm.graph_key import RiverAdditionalConfig
from river_vllm.patches import (
    NotStored,
    read_compiled_forwards,
    reads_compiled_forwards,
    stored_forwards_only,
    under_rivers_key,
)

UNPATCHED = decorators._try_load_aot_compiled_fn
"""vLLM's own, unless an engine of this process was built before."""


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
    inner = getattr(UNPATCHED, "__wrapped__", UNPATCHED)
    monkeypatch.setattr(decorators, "_try_load_aot_compiled_fn", inner)
    path = tmp_path / "model"
    path.write_bytes(b"saved")

    def read(file: object, f_globals: object) -> Any:
        return loaded_function()

    monkeypatch.setattr(torch.compiler, "load_compiled_function", read)
    yield str(path)


def model(architecture: str = "RiverLlamaForCausalLM", additional: Any = None) -> Any:
    from vllm.config import CompilationConfig, VllmConfig

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


def test_without_the_patch_vllm_reads_no_compiled_forward_back(saved: str) -> None:
    """Fails once vLLM asks before it calls: ``compiled_forwards_are_read_back`` can go then."""
    assert load(model(), saved) is None


def test_with_the_patch_it_does(saved: str) -> None:
    read_compiled_forwards(under_rivers_key)
    assert load(model(), saved) is not None


def test_an_engine_without_a_river_is_vllms_own(saved: str) -> None:
    read_compiled_forwards(under_rivers_key)
    assert load(model("LlamaForCausalLM"), saved) is None


def test_beside_settings_of_vllms_own_none_is_read_back(
    saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept there may come from another River, or from another CPU."""
    monkeypatch.setenv("VLLM_USE_AOT_COMPILE", "1")
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "0")
    read_compiled_forwards(under_rivers_key)
    other = model(additional={"river": {}, "gdn_prefill_backend": "auto"})
    assert load(other, saved) is None
    assert not reads_compiled_forwards(other.vllm_config)
    assert reads_compiled_forwards(model().vllm_config)
    assert not reads_compiled_forwards(model("LlamaForCausalLM").vllm_config)


def test_nothing_of_torchs_stays_changed(saved: str) -> None:
    read_compiled_forwards(under_rivers_key)
    load(model(), saved)
    assert not hasattr(BundledAOTAutogradSerializableCallable, "finalize_loading")


def test_what_is_not_stored_is_not_compiled_where_only_stored_ones_are_wanted(saved: str) -> None:
    read_compiled_forwards(under_rivers_key)
    with stored_forwards_only():
        assert load(model(), saved) is not None
        with pytest.raises(NotStored):
            load(model(), saved + ".elsewhere")
    assert load(model(), saved + ".elsewhere") is None


def test_a_patch_is_applied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    applied = []

    def one() -> None:
        applied.append("one")

    monkeypatch.setattr(patches, "_patches", {"front end": [], "worker": [one]})
    monkeypatch.setattr(patches, "_installed", set())
    patches.install("front end")
    assert applied == []
    patches.install("worker")
    patches.install("worker")
    assert applied == ["one"]


EVERY_PATCH = [patch for those in patches._patches.values() for patch in those]


@pytest.mark.parametrize("patch", EVERY_PATCH, ids=lambda patch: patch.__name__)
def test_a_patch_says_why_where_and_until_when(patch: Any) -> None:
    assert "https://github.com/vllm-project/vllm/" in patch.__doc__
    assert "Ends with" in patch.__doc__


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
                    patch.setattr(request, name, getattr(method, "__wrapped__", method))
        yield


@pytest.mark.parametrize(("kind", "body"), BODIES)
def test_a_field_that_nothing_has_taken_is_refused(
    unpatched: None, kind: Any, body: dict[str, Any]
) -> None:
    patches.unread_fields_are_refused()
    request = kind.model_validate({**body, "river": {"threshold": 0.5}})
    for name in METHODS:
        if hasattr(kind, name):
            with pytest.raises(VLLMValidationError, match="VLLM_PLUGINS=river") as caught:
                getattr(request, name)(8, {})
            assert caught.value.parameter == "river"
    assert kind.model_validate(body).to_sampling_params(8, {}).max_tokens == 8


@pytest.mark.parametrize(("kind", "body"), BODIES)
def test_vllm_still_ignores_it(unpatched: None, kind: Any, body: dict[str, Any]) -> None:
    """Once this fails, ``unread_fields_are_refused`` can go."""
    request = kind.model_validate({**body, "river": {"threshold": 0.5}})
    assert request.to_sampling_params(8, {}).max_tokens == 8
