"""Exit layers on the runner's output, in all the forms that vLLM has for it."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from river_vllm.worker.output import attach, depths_of

DEPTHS = {"a": 3, "b": -12}


def runner_output() -> Any:
    from vllm.v1.outputs import ModelRunnerOutput

    return ModelRunnerOutput(req_ids=["a", "b"], req_id_to_index={"a": 0, "b": 1})


def test_vllms_output_carries_the_depths_across_processes() -> None:
    output = attach(runner_output(), DEPTHS)
    assert depths_of(pickle.loads(pickle.dumps(output))) == DEPTHS


@pytest.mark.parametrize("holder", ["model_runner_output", "_model_runner_output"])
def test_an_asynchronous_output_carries_them_on_the_final_one(holder: str) -> None:
    final = runner_output()
    wrapper = SimpleNamespace(**{holder: final})
    assert attach(wrapper, DEPTHS) is wrapper
    assert depths_of(final) == DEPTHS


@pytest.mark.parametrize(
    ("module", "class_name", "holder"),
    [
        ("vllm.v1.worker.gpu_model_runner", "AsyncGPUModelRunnerOutput", "_model_runner_output"),
        ("vllm.v1.worker.gpu.async_utils", "AsyncOutput", "model_runner_output"),
    ],
)
def test_vllms_asynchronous_outputs_hold_it_there(
    module: str, class_name: str, holder: str
) -> None:
    """Names that River reads and vLLM does not promise."""
    import importlib
    import inspect

    cls = getattr(importlib.import_module(module), class_name)
    assert f"self.{holder} = model_runner_output" in inspect.getsource(cls.__init__)
    assert f"self.{holder}" in inspect.getsource(cls.get_output)


def test_a_step_without_forward_pass_has_none() -> None:
    assert attach(None, DEPTHS) is None
    assert depths_of(None) == {}
    assert depths_of(runner_output()) == {}
