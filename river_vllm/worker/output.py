"""Exit layers on a step's output, from the runner to the scheduler."""

from __future__ import annotations

from typing import Any

ATTRIBUTE = "river"
"""Extra attribute of vLLM's ``ModelRunnerOutput``, a plain dataclass that is pickled whole."""


def attach(output: Any, depths: dict[str, int]) -> Any:
    """Put ``depths`` (request id → signed depth) on what ``sample_tokens`` returns.

    vLLM's asynchronous outputs hold the final one in an attribute: ``model_runner_output`` in
    runner V2 (``v1/worker/gpu/async_utils.py``), ``_model_runner_output`` in V1.
    """
    if output is None:
        return None
    for holder in ("model_runner_output", "_model_runner_output"):
        inner = getattr(output, holder, None)
        if inner is not None:
            setattr(inner, ATTRIBUTE, depths)
            return output
    setattr(output, ATTRIBUTE, depths)
    return output


def depths_of(output: Any) -> dict[str, int]:
    """What ``attach`` put there; empty for a step without a forward pass."""
    return getattr(output, ATTRIBUTE, None) or {}
