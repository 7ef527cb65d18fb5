"""Registration with vLLM, and the arguments that make an engine River's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import river_vllm
from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError
from river_vllm.plugin import merge_engine_args


@pytest.fixture
def model(tmp_path: Path) -> str:
    config = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM", "Other"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def test_engine_args_name_rivers_class_and_settings(model: str) -> None:
    args = river_vllm.engine_args(model, RiverConfig(threshold=0.5), max_model_len=64)
    assert args == {
        "max_model_len": 64,
        "hf_overrides": {"architectures": ["RiverQwen2ForCausalLM"]},
        "additional_config": {"river": {"threshold": 0.5}},
    }


def test_other_overrides_and_settings_are_kept(model: str) -> None:
    options = {
        "hf_overrides": {"rope_theta": 1.0},
        "additional_config": {"x": 1, "river": {"scope": "batch", "threshold": 0.1}},
    }
    args = merge_engine_args(model, RiverConfig(threshold=0.5), options)
    assert args["hf_overrides"] == {"rope_theta": 1.0, "architectures": ["RiverQwen2ForCausalLM"]}
    assert args["additional_config"] == {"x": 1, "river": {"scope": "batch", "threshold": 0.5}}
    assert options["additional_config"] == {"x": 1, "river": {"scope": "batch", "threshold": 0.1}}


def test_an_architecture_that_is_given_goes_before_the_checkpoints() -> None:
    for given in ("LlamaForCausalLM", "RiverLlamaForCausalLM"):
        options = {"hf_overrides": {"architectures": [given]}}
        args = merge_engine_args("/nowhere", RiverConfig(), options)
        assert args["hf_overrides"]["architectures"] == ["RiverLlamaForCausalLM"]


@pytest.mark.parametrize(
    "options",
    [{"hf_overrides": lambda config: config}, {"additional_config": {"river": 0.9}}],
    ids=["function", "number"],
)
def test_options_of_another_shape_are_refused(model: str, options: dict[str, Any]) -> None:
    with pytest.raises(RiverError, match=next(iter(options))):
        merge_engine_args(model, RiverConfig(), options)


# Imports once, and a process of its own for each engine.
PROCESSES = '''
import json, multiprocessing, sys, threading
from types import SimpleNamespace

import vllm.v1.core.sched.scheduler
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.model_executor.models.registry import ModelRegistry
import river_vllm
import river_vllm.plugin.hook


def everything():
    """What vLLM's modules and classes hold, by name."""
    modules = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "vllm"}
    found = {}
    for name, module in modules.items():
        for key, value in list(vars(module).items()):
            found[name, key] = value
            if isinstance(value, type) and value.__module__ == name:
                found.update({(name, key, k): v for k, v in vars(value).items()})
    return found


def engine(vllm_config, answers):
    before, threads = everything(), threading.active_count()
    try:
        river_vllm.register()
    except ValueError as error:
        answers.put([str(error)])
        return
    after = everything()
    changed = [".".join(k) for k, v in before.items() if after.get(k) is not v]
    answers.put([threading.active_count() - threads, changed])


context = multiprocessing.get_context("fork")
found = []
river = "river_vllm.engine.scheduler.RiverScheduler"
for scheduler, additional in ((None, {}), (river, {"river": {}}), (None, {"river": {}})):
    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(scheduler_cls=scheduler),
        model_config=SimpleNamespace(architecture="LateForCausalLM"),
        additional_config=additional,
    )
    answers = context.SimpleQueue()
    process = context.Process(
        target=engine, name="EngineCore", kwargs={"vllm_config": config, "answers": answers}
    )
    process.start()
    found.append(answers.get())
    process.join()

stock = dict(MODELS_CONFIG_MAP)
names = {*ModelRegistry.models, *stock}
river_vllm.register()
first = dict(ModelRegistry.models), dict(MODELS_CONFIG_MAP)
river_vllm.register()
assert (ModelRegistry.models, MODELS_CONFIG_MAP) == first, "not idempotent"
for name in ("RiverLlamaForCausalLM", "RiverBloomForCausalLM"):
    entry = ModelRegistry.models[name]
    assert (entry.module_name, entry.class_name) == ("river_vllm.plugin.classes", name), entry
    assert MODELS_CONFIG_MAP[name].__name__ == "RiverConfigHook"
for name in names:
    hook = MODELS_CONFIG_MAP[name]
    assert hook.__module__ == "river_vllm.plugin.hook", name
    assert hook.__base__ is stock.get(name, VerifyAndUpdateConfig), name
models = ("vllm.model_executor.models.llama", "vllm.model_executor.models.qwen2")
own = ("river_vllm.plugin.classes", "river_vllm.engine.", "river_vllm.model.f")
wrong = [m for m in sys.modules if m.startswith((*models, *own))]
assert not wrong, wrong
print(json.dumps(found))
'''


def test_an_engine_without_a_river_is_left_as_it_was() -> None:
    """It is idempotent and imports no model. In the process of an engine without a river it starts
    no thread and replaces nothing of vLLM's; in the engine of a river it starts the watch over the
    process that started it. An engine that was to have a river, and whose architecture had no hook
    yet, ends."""
    done = subprocess.run(
        [sys.executable, "-c", PROCESSES], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    stock, river, late = json.loads(done.stdout.splitlines()[-1])
    assert stock == [0, []]
    assert river[0] == 1
    assert "'LateForCausalLM' is not supported: the plugin that brings it" in late[0]
