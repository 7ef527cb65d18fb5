"""vLLM's configuration hook: what is settled, and what is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from river_vllm import engine_config
from river_vllm.compat import CompilationMode, vllm_envs
from river_vllm.errors import RiverError, UnsupportedModelError
from river_vllm.plugin import hook as module
from river_vllm.plugin import refusals
from river_vllm.plugin.hook import RiverConfigHook
from river_vllm.plugin.refusals import CPU_WORKER, GPU_WORKER, RUNNER_V2, SCHEDULER
from river_vllm.weights.fingerprint import fingerprint
from tests.unit.calibrate.support import calibrated

LAYERS = 12


def connector(name: str, module: str | None = None, **extra: Any) -> Any:
    return SimpleNamespace(
        kv_connector=name, kv_connector_module_path=module, kv_connector_extra_config=extra
    )


class Config(SimpleNamespace):
    """Plays ``VllmConfig``."""

    has_triton = False

    @property
    def use_v2_model_runner(self) -> bool:
        asked: bool | None = vllm_envs.VLLM_USE_V2_MODEL_RUNNER
        return self.has_triton if asked is None else asked


def engine(river: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A configuration that River takes; ``changes`` are set by dotted name."""
    made = Config(
        additional_config={"river": {"verify": 0} if river is None else river},
        model_config=SimpleNamespace(
            architecture="RiverLlamaForCausalLM",
            hf_config=SimpleNamespace(),
            model="someone/some-model",
            get_total_num_hidden_layers=lambda: LAYERS,
            quantization=None,
            dtype=torch.bfloat16,
            runner_type="generate",
            enforce_eager=False,
            enable_sleep_mode=False,
            logits_processors=None,
            enable_prompt_embeds=False,
        ),
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1,
            tensor_parallel_size=2,
            distributed_executor_backend="mp",
            enable_dbo=False,
            decode_context_parallel_size=1,
            worker_cls="auto",
        ),
        scheduler_config=SimpleNamespace(scheduler_cls=None, async_scheduling=None),
        attention_config=SimpleNamespace(hisparse_config=None),
        watermark_config=None,
        aux_output_config=SimpleNamespace(enable_return_routed_experts=False),
        load_config=SimpleNamespace(load_format="auto"),
        cache_config=SimpleNamespace(
            cache_dtype="auto", kv_offloading_size=None, kv_offloading_backend="native"
        ),
        offload_config=SimpleNamespace(
            uva=SimpleNamespace(cpu_offload_gb=0.0), prefetch=SimpleNamespace(offload_group_size=0)
        ),
        kv_transfer_config=None,
        speculative_config=None,
        lora_config=None,
        compilation_config=SimpleNamespace(mode=None),
    )
    for name, value in changes.items():
        part, _, field = name.partition("__")
        if field:
            setattr(getattr(made, part), field, value)
        else:
            setattr(made, part, value)
    return made


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Its element is what is wrong with the machine's compiler."""
    wrong: list[str | None] = [None]
    monkeypatch.setattr(module, "cannot_compile", lambda: wrong[0])
    return wrong


def on_platform(monkeypatch: pytest.MonkeyPatch, cpu: bool) -> None:
    for place in (module, refusals, engine_config):
        monkeypatch.setattr(place, "current_platform", SimpleNamespace(is_cpu=lambda: cpu))


def hook(config: Any) -> Any:
    RiverConfigHook.verify_and_update_config(config)
    return config


@pytest.mark.parametrize(("cpu", "worker"), [(True, CPU_WORKER), (False, GPU_WORKER)])
def test_the_engine_gets_rivers_worker_and_scheduler(
    cpu: bool, worker: str, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    on_platform(monkeypatch, cpu)
    config = hook(engine())
    assert config.parallel_config.worker_cls == worker
    assert config.scheduler_config.scheduler_cls == SCHEDULER
    assert not config.model_config.enforce_eager
    # Every process that builds the configuration runs the hook again.
    assert hook(config).parallel_config.worker_cls == worker
    assert sum("make gpu-check" in line for line in warnings) == (not cpu)


@pytest.mark.parametrize(
    ("change", "value", "reason"),
    [
        ("parallel_config__distributed_executor_backend", "ray", "Ray on the CPU.* --nnodes"),
        ("parallel_config__enable_dbo", True, "--enable-dbo"),
        ("parallel_config__decode_context_parallel_size", 2, "decode context parallelism"),
        ("model_config__quantization", "fbgemm_fp8", "quantised by fbgemm_fp8"),
        ("model_config__dtype", torch.float16, "dtype float16 on the CPU"),
        ("aux_output_config__enable_return_routed_experts", True, "routed-experts"),
        ("model_config__enable_sleep_mode", True, "--enable-sleep-mode"),
        ("compilation_config__mode", CompilationMode.STOCK_TORCH_COMPILE, "-cc.mode"),
        ("cache_config__cache_dtype", "nvfp4", "--kv-cache-dtype nvfp4 .*tried: auto, bfloat16"),
        (
            "cache_config",
            SimpleNamespace(
                cache_dtype="auto", kv_offloading_size=4.0, kv_offloading_backend="lmcache"
            ),
            "--kv-offloading-backend lmcache",
        ),
        ("kv_transfer_config", connector("LMCacheConnectorV1"), "'LMCacheConnectorV1'.* by tokens"),
    ],
)
def test_what_has_no_place_for_a_river_is_refused(change: str, value: Any, reason: str) -> None:
    """Others, on a configuration of vLLM's own: tests/engine/test_refusals.py."""
    config = engine(**{change: value})
    with pytest.raises(UnsupportedModelError, match=reason):
        hook(config)
    assert config.scheduler_config.scheduler_cls != SCHEDULER


def test_adapters_do_not_go_with_fetched_layers() -> None:
    river = {"resident_layers": 4, "deep": "fetch", "min_layers": 5, "threshold": 1.0}
    with pytest.raises(UnsupportedModelError, match=r"LoRA adapters .*--river-deep exit"):
        hook(engine(river, lora_config=SimpleNamespace()))


def test_prompt_embeddings_go_with_exits_alone() -> None:
    hook(engine(model_config__enable_prompt_embeds=True))
    config = engine({"verify": 2}, model_config__enable_prompt_embeds=True)
    with pytest.raises(UnsupportedModelError, match=r"prompt embeddings .*--river-verify 0"):
        hook(config)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("RIVER_CPU_ISA", "sse2", "RIVER_CPU_ISA = 'sse2': must be one of scalar, neon"),
        ("VLLM_USE_RUST_FRONTEND", "1", "Rust front end"),  # it would ignore the field
    ],
)
def test_a_variable_that_cannot_be_served_is_refused_before_anything_starts(
    variable: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(RiverError, match=reason):
        hook(engine())


@pytest.mark.parametrize(
    ("change", "value", "reason"),
    [
        ("cache_config__cache_dtype", "fp8", "--kv-cache-dtype fp8 .*tried: auto, bfloat16"),
        ("offload_config__uva", SimpleNamespace(cpu_offload_gb=4.0), "--cpu-offload-gb"),
        ("lora_config", SimpleNamespace(), "--enable-lora"),
    ],
)
def test_what_was_run_on_the_cpu_only_is_refused_on_a_gpu(
    change: str, value: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook(engine(**{change: value}))
    on_platform(monkeypatch, cpu=False)
    with pytest.raises(UnsupportedModelError, match=f"cannot be combined with .*{reason}"):
        hook(engine(**{change: value}))


def test_a_saved_memory_plan_is_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_STARTUP_PLAN", "1")
    hook(engine())  # a CPU's worker saves none
    on_platform(monkeypatch, cpu=False)
    with pytest.raises(UnsupportedModelError, match=r"VLLM_ENABLE_STARTUP_PLAN.*leave it out"):
        hook(engine())


@pytest.mark.parametrize(
    ("transfer", "reason"),
    [
        *((connector(name), f"'{name}'") for name in refusals.REFUSED),
        (connector("MyConnector"), "'MyConnector': how it finds K/V is not known here"),
        (connector("OffloadingConnector", "my.module"), "'OffloadingConnector' of my.module"),
        (
            connector("OffloadingConnector", spec_name="MySpec"),
            "'OffloadingConnector' with spec_name 'MySpec'",
        ),
        (
            connector(
                "MultiConnector",
                connectors=[
                    {"kv_connector": "OffloadingConnector"},
                    {"kv_connector": "NixlConnector", "kv_connector_extra_config": {}},
                ],
            ),
            "'NixlConnector': it hands a request's K/V to another engine",
        ),
    ],
)
def test_other_connectors_are_refused_by_name(transfer: Any, reason: str) -> None:
    config = engine(kv_transfer_config=transfer)
    with pytest.raises(UnsupportedModelError, match=re.escape(f"K/V connector {reason}")):
        hook(config)
    assert config.scheduler_config.scheduler_cls is None


def test_every_connector_of_vllm_is_decided_about() -> None:
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    decided = {*refusals.BY_BLOCK_HASHES, *refusals.REFUSED, refusals.MULTI}
    assert decided == set(KVConnectorFactory._registry)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without a choice of a runner; afterwards as it was."""
    # An engine of this process has frozen what vLLM reads from the environment.
    vllm_envs.disable_envs_cache()
    monkeypatch.setenv(RUNNER_V2, "")
    monkeypatch.delenv(RUNNER_V2)
    return monkeypatch


@pytest.mark.parametrize(
    ("triton", "given", "left"), [(True, None, "0"), (False, None, None), (False, "0", "0")]
)
def test_an_engine_that_would_run_on_v2_runs_on_v1(
    triton: bool, given: str | None, left: str | None, environment: pytest.MonkeyPatch
) -> None:
    """A process that is started now inherits it; where V1 would run anyway nothing is changed."""
    if given is not None:
        environment.setenv(RUNNER_V2, given)
    config = engine(has_triton=triton)
    hook(hook(config))
    assert os.environ.get(RUNNER_V2) == left
    assert not config.use_v2_model_runner


def test_v2_that_is_asked_for_or_settled_is_refused(environment: pytest.MonkeyPatch) -> None:
    """vLLM freezes its environment once an engine runs in the process."""
    environment.setenv(RUNNER_V2, "1")
    with pytest.raises(UnsupportedModelError, match=f"model runner V2 .leave out {RUNNER_V2}=1"):
        hook(engine())
    environment.delenv(RUNNER_V2)
    environment.setattr(Config, "use_v2_model_runner", True)
    with pytest.raises(UnsupportedModelError, match="settled on V2"):
        hook(engine())


def test_asynchronous_scheduling_is_off_where_drafts_are_verified(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the CPU vLLM turns it off itself; where tokens exit it is vLLM's to decide."""

    class Speculation(SimpleNamespace):
        """Plays ``RiverSpeculativeConfig``."""

    on_platform(monkeypatch, cpu=False)
    for place in (refusals, engine_config):
        monkeypatch.setattr(place, "RiverSpeculativeConfig", Speculation)
    config = hook(hook(engine({"verify": 4})))
    assert config.speculative_config.num_speculative_tokens == 4
    assert config.scheduler_config.async_scheduling is False
    assert hook(engine()).scheduler_config.async_scheduling is None


def test_the_hook_of_the_architecture_itself_runs_first(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []

    def own(config: Any) -> None:
        ran.append(config.scheduler_config.scheduler_cls)

    hooks = SimpleNamespace(verify_and_update_config=own)
    monkeypatch.setitem(module.MODELS_CONFIG_MAP, "LlamaForCausalLM", hooks)
    hook(engine())
    assert ran == [None]


def test_vllms_configuration_has_every_field_that_is_looked_at() -> None:
    from vllm.config import VllmConfig

    real, fake = VllmConfig(), engine()
    for part, values in vars(fake).items():
        assert hasattr(real, part), part
        config = getattr(real, part)
        if isinstance(values, SimpleNamespace) and config is not None:
            for field in vars(values):
                assert hasattr(config, field), f"{part}.{field}"


def test_a_calibration_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    river = calibrated()
    here = str(tmp_path)
    with pytest.raises(RiverError, match="calibrated for the model 'm'.*config_sha256"):  # noqa: RUF043
        hook(engine(river, model_config__model=here))
    river["calibration"]["model"] = fingerprint(here).model_dump()
    hook(engine(river, model_config__model=here))


def test_weights_other_than_the_calibrated_ones_are_refused(tmp_path: Path) -> None:
    """GPTQ's, which are made with a text: another text, other weights."""
    cache = tmp_path / "cache"
    folder = cache / "someone--some-model" / "gptq-g128"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "layer-0000.safetensors").write_bytes(b"of another text")
    river = calibrated() | {"quantizer": "gptq", "cache_dir": str(cache)}
    river["calibration"]["settings"]["quantizer"] = "gptq"
    with pytest.raises(RiverError, match=r"gptq-g128' do not go with .* made at load"):
        hook(engine(river))


def test_exits_that_cannot_be_had_without_later_layers_are_refused() -> None:
    with pytest.raises(RiverError, match=r"'threshold' = 1\.0: must be below 1\.0"):
        hook(engine({"resident_layers": 4, "threshold": 1.0}))


@pytest.mark.parametrize(
    "river", [{"threshold": 0.9}, {"resident_layers": 4}, {"weights": "/w"}, {"scope": "token"}]
)
def test_settings_of_exits_are_refused_where_the_checkpoint_is_in_4_bit(
    river: dict[str, Any], tmp_path: Path
) -> None:
    awq = SimpleNamespace(quantization_config={"quant_method": "awq", "bits": 4})
    changes = {"model_config__hf_config": awq, "model_config__quantization": "awq"}
    with pytest.raises(RiverError, match=f"'{next(iter(river))}' = .*own weights are in 4 bit"):
        hook(engine(river, **changes))
    hook(engine({"threshold": 1.0}, **changes))


@pytest.mark.parametrize(
    "quantization",
    [{"quant_method": "fp8"}, {"quant_method": "compressed-tensors", "format": "float-quantized"}],
)
def test_fp8_needs_amx_on_a_cpu(
    quantization: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "model_config__hf_config": SimpleNamespace(quantization_config=quantization),
        "model_config__quantization": quantization["quant_method"],
    }
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: True)
    hook(engine({"verify": 0}, **changes))
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    with pytest.raises(UnsupportedModelError, match="FP8 checkpoint on a CPU without AMX"):
        hook(engine({"verify": 0}, **changes))


def test_settings_of_exits_are_refused_where_none_are_proven(tmp_path: Path) -> None:
    changes = {"model_config__architecture": "RiverApertusForCausalLM"}
    with pytest.raises(RiverError, match=r"'threshold' = 0\.9: exits have not been .*Apertus"):
        hook(engine({"threshold": 0.9}, **changes))
    hook(engine({"verify": 0}, **changes))


def test_fetching_needs_a_checkpoint_of_safetensors() -> None:
    river = {"resident_layers": 4, "deep": "fetch", "min_layers": 5, "threshold": 1.0}
    hook(engine(river))
    with pytest.raises(RiverError, match=r"--load-format dummy .*allowed: auto, hf, safetensors"):
        hook(engine(river, load_config__load_format="dummy"))


NONE = "there is no C++ compiler (g++)"


@pytest.mark.parametrize(
    ("wrong", "changes", "eager", "warned"),
    [
        (None, {}, False, 0),
        (NONE, {}, True, 1),
        # Who asks for none is not warned.
        (NONE, {"model_config__enforce_eager": True}, True, 0),
        (NONE, {"compilation_config__mode": CompilationMode.NONE}, False, 0),
        # Where layers may be gone nothing is compiled.
        (None, {"river": {"resident_layers": LAYERS}}, False, 0),
        (None, {"river": {"resident_layers": 4}}, True, 0),
    ],
)
def test_what_is_compiled(
    wrong: str | None,
    changes: dict[str, Any],
    eager: bool,
    warned: int,
    compiler: list[str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    logger = SimpleNamespace(warning=lambda text, *_: said.append(text))
    monkeypatch.setattr(module, "logger", logger)
    compiler[0] = wrong
    config = engine(**changes)
    hook(hook(config))
    assert config.model_config.enforce_eager is eager
    assert len(said) == warned
