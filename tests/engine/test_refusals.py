"""What River does not go with is refused at start-up, in one line, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from river_vllm import RiverConfig, engine_args

pytestmark = pytest.mark.engine


def _engine_config(model: Path, **options: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    config = options.pop("river", None)
    arguments = engine_args(str(model), config, max_model_len=256, **options)
    return EngineArgs(model=str(model), **arguments).create_engine_config()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"watermark_config": {"key": 1}}, "watermarking"),
        ({"attention_config": {"hisparse_config": {}}}, "HiSparse"),
        ({"async_scheduling": True, "river": RiverConfig(verify=2)}, "asynchronous scheduling"),
        ({"worker_cls": "some.Worker"}, "custom worker (some.Worker; leave"),
        ({"river": RiverConfig(min_layers=7)}, "'min_layers' = 7: must be between 1 and 6"),
        ({"river": RiverConfig(resident_layers=7)}, "'resident_layers' = 7: must be"),
        (
            {"river": RiverConfig(resident_layers=3, min_layers=4)},
            "'min_layers' = 4: must be between 1 and 3, only the first 3 of 6 hold",
        ),
        ({"additional_config": {"river": {"tau": 1}}}, "unknown field 'tau'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refused(tiny_qwen2: Path, options: dict[str, Any], words: str) -> None:
    """Others: tests/server/test_refusals.py, tests/unit/plugin/test_hook.py."""
    with pytest.raises(Exception) as caught:
        _engine_config(tiny_qwen2, **options)
    assert words in str(caught.value)


FLAG = {"river": {"threshold": 0.9, "scope": "token"}}


def _plain_config(model: Path, **options: Any) -> Any:
    """As ``vllm serve`` makes it from its own options."""
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(model=str(model), max_model_len=256, **options).create_engine_config()


def test_one_flag_is_the_long_form(tiny_qwen2: Path) -> None:
    """``additional_config`` alone, against ``hf_overrides`` beside it."""
    overrides = {"architectures": ["RiverQwen2ForCausalLM"]}
    flag = _plain_config(tiny_qwen2, additional_config=FLAG)
    long = _plain_config(tiny_qwen2, additional_config=FLAG, hf_overrides=overrides)
    assert flag.compute_hash() == long.compute_hash()
    assert flag.scheduler_config.scheduler_cls == long.scheduler_config.scheduler_cls
    assert flag.parallel_config.worker_cls == long.parallel_config.worker_cls
    of_flag, of_long = vars(flag.model_config), vars(long.model_config)
    assert of_flag["hf_config"].to_dict() == of_long["hf_config"].to_dict()
    differs = {name for name in of_long if of_flag[name] != of_long[name]}
    assert differs <= {"hf_overrides", "hf_config", "hf_text_config"}


def test_without_the_flag_the_engine_is_stock(tiny_qwen2: Path) -> None:
    config = _plain_config(tiny_qwen2)
    assert config.model_config.architecture == "Qwen2ForCausalLM"
    assert config.additional_config == {}
    assert config.scheduler_config.scheduler_cls is None
    assert "river" not in config.parallel_config.worker_cls


def test_one_flag_refuses_a_pooling_architecture(tiny_qwen2: Path) -> None:
    overrides = {"architectures": ["Qwen2Model"]}
    assert _plain_config(tiny_qwen2, hf_overrides=overrides)
    with pytest.raises(Exception, match="'Qwen2Model' is not supported: vLLM serves it as a pool"):
        _plain_config(tiny_qwen2, hf_overrides=overrides, additional_config=FLAG)


def test_verified_mode_is_vllms_own_speculation(tiny_qwen2: Path) -> None:
    """Look-ahead slots, the rejection sampler and its metrics are vLLM's: it has to be told."""
    config = _engine_config(tiny_qwen2, river=RiverConfig(verify=3))
    assert config.num_speculative_tokens == config.num_lookahead_tokens == 3
    assert config.speculative_config.draft_model_config.model == str(tiny_qwen2)
    assert config.speculative_config.draft_sample_method == "probabilistic"
    assert config.scheduler_config.async_scheduling is False


def test_checkpoint_settings_are_the_middle_layer(tiny_qwen2: Path) -> None:
    """Defaults, then the checkpoint's ``river_config``, then the engine's own settings."""
    from river_vllm.config import river_config_of

    overrides = {"river_config": {"threshold": 0.7, "min_layers": 3}}
    config = _engine_config(tiny_qwen2, hf_overrides=overrides, river=RiverConfig(threshold=0.8))
    river = river_config_of(config)
    assert (river.threshold, river.min_layers, river.scope) == (0.8, 3, "step")
