"""Exit layers on the runner's output, in all the forms that vLLM has for it."""

from __future__ import annotations

import inspect
import pickle
from types import SimpleNamespace
from typing import Any

from river_vllm.modes.mode import depths_of, put_depths

DEPTHS = {"a": 3, "b": -12}


def runner_output() -> Any:
    from vllm.v1.outputs import ModelRunnerOutput

    return ModelRunnerOutput(req_ids=["a", "b"], req_id_to_index={"a": 0, "b": 1})


def test_vllms_output_carries_the_depths_across_processes() -> None:
    output = put_depths(runner_output(), DEPTHS)
    assert depths_of(pickle.loads(pickle.dumps(output))) == DEPTHS


def test_an_asynchronous_output_carries_them_on_the_final_one() -> None:
    final = runner_output()
    wrapper = SimpleNamespace(_model_runner_output=final)
    assert put_depths(wrapper, DEPTHS) is wrapper
    assert depths_of(final) == DEPTHS


def test_vllms_asynchronous_output_holds_it_there() -> None:
    """A name that River reads and vLLM does not promise."""
    from vllm.v1.worker.gpu_model_runner import AsyncGPUModelRunnerOutput as Output

    made = inspect.getsource(Output.__init__)
    assert "self._model_runner_output = model_runner_output" in made
    assert "self._model_runner_output" in inspect.getsource(Output.get_output)


def test_a_step_without_forward_pass_has_none() -> None:
    assert put_depths(None, DEPTHS) is None
    assert depths_of(None) == {}
    assert depths_of(runner_output()) == {}
