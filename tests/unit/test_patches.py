"""What River replaces in vLLM, and when that can go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.exceptions import VLLMValidationError

from river_vllm import patches

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
