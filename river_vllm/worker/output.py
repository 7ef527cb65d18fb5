"""Exit layers on a step's output, from the runner to the scheduler."""

from __future__ import annotations

from typing import Any

ATTRIBUTE = "river"
"""Extra attribute of vLLM's ``ModelRunnerOutput``, a plain dataclass that is pickled whole."""


def attach(output: Any, depths: dict[str, int]) -> Any:
    """Put ``depths`` (request id → signed depth) on what ``sample_tokens`` returns.

    vLLM's asynchronous output holds the final one in ``_model_runner_output``
    (``v1/worker/gpu_model_runner.py``).
    """
    if output is not None:
        setattr(getattr(output, "_model_runner_output", output), ATTRIBUTE, depths)
    return output


def depths_of(output: Any) -> dict[str, int]:
    """What ``attach`` put there; empty for a step without a forward pass."""
    return getattr(output, ATTRIBUTE, None) or {}
