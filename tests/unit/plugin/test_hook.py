"""vLLM's configuration hook: what is settled, and what is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from river_vllm import patches, speculation
from river_vllm.compat import CompilationMode, vllm_envs
from river_vllm.errors import RiverError, UnsupportedModelError
from river_vllm.plugin import connectors
from river_vllm.plugin import hook as module
from river_vllm.plugin.hook import (
    CPU_WORKER,
    GPU_WORKER,
    RUNNER_V2,
    SCHEDULER,
    RiverConfigHook,
)
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
            uva=SimpleNamespace(cpu_offload_gb=0.0),
            prefetch=SimpleNamespace(offload_group_size=0),
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


def hook(config: Any) -> Any:
    RiverConfigHook.verify_and_update_config(config)
    return config


@pytest.mark.parametrize(("cpu", "worker"), [(True, CPU_WORKER), (False, GPU_WORKER)])
def test_the_engine_gets_rivers_worker_and_scheduler(
    cpu: bool, worker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = SimpleNamespace(is_cpu=lambda: cpu)
    monkeypatch.setattr(module, "current_platform", platform)
    config = hook(engine())
    assert config.parallel_config.worker_cls == worker
    assert config.scheduler_config.scheduler_cls == SCHEDULER
    # A CUDA graph cannot branch; the CPU's compiled forward serves steps without exits.
    assert config.model_config.enforce_eager is not cpu
    # Every process that builds the configuration runs the hook again.
    assert hook(config).parallel_config.worker_cls == worker


def test_what_it_names_can_be_imported() -> None:
    from vllm.utils.import_utils import resolve_obj_by_qualname

    for name in (SCHEDULER, CPU_WORKER, GPU_WORKER):
        assert resolve_obj_by_qualname(name).__name__ == name.rpartition(".")[2]


@pytest.mark.parametrize(
    ("change", "value", "reason"),
    [
        ("parallel_config__pipeline_parallel_size", 2, "pipeline parallelism"),
        ("parallel_config__distributed_executor_backend", "ray", "Ray on the CPU.* --nnodes"),
        ("parallel_config__enable_dbo", True, "--enable-dbo"),
        ("parallel_config__decode_context_parallel_size", 2, "decode context parallelism"),
        ("model_config__quantization", "awq", "quantised by awq"),
        ("model_config__dtype", torch.float16, "dtype float16 on the CPU"),
        ("speculative_config", object(), "speculative decoding"),
        ("model_config__runner_type", "pooling", "pooling models"),
        ("lora_config", object(), "LoRA"),
        ("aux_output_config__enable_return_routed_experts", True, "routed-experts"),
        ("scheduler_config__scheduler_cls", "my.Scheduler", "my.Scheduler"),
        ("parallel_config__worker_cls", "my.Worker", "my.Worker"),
        ("model_config__enable_sleep_mode", True, "--enable-sleep-mode"),
        ("watermark_config", object(), "watermarking.* --watermark-config"),
        ("attention_config__hisparse_config", object(), "HiSparse.* --attention-config"),
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
    config = engine(**{change: value})
    with pytest.raises(UnsupportedModelError, match=f"cannot be combined with .*{reason}"):
        hook(config)
    assert config.scheduler_config.scheduler_cls != SCHEDULER


def test_prompt_embeddings_go_with_exits_alone() -> None:
    hook(engine(model_config__enable_prompt_embeds=True))
    config = engine({"verify": 2}, model_config__enable_prompt_embeds=True)
    with pytest.raises(UnsupportedModelError, match=r"prompt embeddings .*--river-verify 0"):
        hook(config)


def test_an_instruction_set_that_there_is_not_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RIVER_CPU_ISA", "sse2")
    with pytest.raises(RiverError, match="RIVER_CPU_ISA = 'sse2': must be one of scalar, neon"):
        hook(engine())


def test_an_engine_with_a_river_has_vllm_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(patches, "install", called.append)
    hook(engine())
    assert called == ["front end"]


def test_a_front_end_that_would_ignore_the_field_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(UnsupportedModelError, match="Rust front end"):
        hook(engine())


@pytest.mark.parametrize(
    ("change", "value", "reason"),
    [
        ("cache_config__cache_dtype", "fp8", "--kv-cache-dtype fp8 .*tried: auto, bfloat16"),
        (
            "offload_config",
            SimpleNamespace(
                uva=SimpleNamespace(cpu_offload_gb=4.0),
                prefetch=SimpleNamespace(offload_group_size=0),
            ),
            "--cpu-offload-gb",
        ),
    ],
)
def test_what_was_run_on_the_cpu_only_is_refused_on_a_gpu(
    change: str, value: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook(engine(**{change: value}))
    monkeypatch.setattr(module, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    with pytest.raises(UnsupportedModelError, match=f"cannot be combined with .*{reason}"):
        hook(engine(**{change: value}))


@pytest.mark.parametrize(
    "transfer",
    [
        connector("OffloadingConnector", cpu_bytes_to_use=1),
        connector("OffloadingConnector", spec_name="CPUOffloadingSpec"),
        connector("SimpleCPUOffloadConnector"),
        connector("MooncakeStoreConnector"),
        connector("MultiConnector", connectors=[{"kv_connector": "OffloadingConnector"}]),
        SimpleNamespace(kv_connector=None),
    ],
    ids=lambda transfer: str(transfer.kv_connector),
)
def test_connectors_that_find_kv_by_block_hashes_are_taken(transfer: Any) -> None:
    assert hook(engine(kv_transfer_config=transfer)).scheduler_config.scheduler_cls == SCHEDULER


@pytest.mark.parametrize(
    ("transfer", "reason"),
    [
        *((connector(name), f"'{name}'") for name in connectors.REFUSED),
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

    decided = {*connectors.BY_BLOCK_HASHES, *connectors.REFUSED, connectors.MULTI}
    assert decided == set(KVConnectorFactory._registry)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without a choice of a runner; afterwards as it was."""
    # An engine of this process has frozen what vLLM reads from the environment.
    vllm_envs.disable_envs_cache()
    monkeypatch.setenv(RUNNER_V2, "")
    monkeypatch.delenv(RUNNER_V2)
    return monkeypatch


def test_an_engine_that_would_run_on_v2_runs_on_v1(environment: pytest.MonkeyPatch) -> None:
    config = engine(has_triton=True)
    assert config.use_v2_model_runner
    hook(hook(config))
    # A process that is started now inherits it.
    assert os.environ[RUNNER_V2] == "0"
    assert not config.use_v2_model_runner


@pytest.mark.parametrize("given", [None, "0"])
def test_the_environment_of_an_engine_on_v1_stays(
    given: str | None, environment: pytest.MonkeyPatch
) -> None:
    if given is not None:
        environment.setenv(RUNNER_V2, given)
    hook(engine())
    assert os.environ.get(RUNNER_V2) == given


def test_who_asks_for_v2_is_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv(RUNNER_V2, "1")
    with pytest.raises(UnsupportedModelError, match=f"model runner V2 .leave out {RUNNER_V2}=1"):
        hook(engine())


def test_a_process_that_has_settled_on_v2_is_refused(environment: pytest.MonkeyPatch) -> None:
    """vLLM freezes its environment once an engine runs in the process."""
    environment.setattr(Config, "use_v2_model_runner", True)
    with pytest.raises(UnsupportedModelError, match=f"set {RUNNER_V2}=0 before it starts"):
        hook(engine())


def test_vllm_chooses_the_runner_by_the_environment(environment: pytest.MonkeyPatch) -> None:
    import vllm.config.vllm as module
    from vllm.config import VllmConfig

    config = VllmConfig()
    environment.setattr(module, "HAS_TRITON", True)
    assert config.use_v2_model_runner
    environment.setenv(RUNNER_V2, "0")
    assert not config.use_v2_model_runner


@pytest.mark.parametrize("cpu", [True, False])
def test_asynchronous_scheduling_is_off_where_drafts_are_verified(
    cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Speculation(SimpleNamespace):
        """Plays ``RiverSpeculativeConfig``."""

    monkeypatch.setattr(module, "current_platform", SimpleNamespace(is_cpu=lambda: cpu))
    monkeypatch.setattr(speculation, "current_platform", SimpleNamespace(is_cpu=lambda: cpu))
    for place in (module, speculation):
        monkeypatch.setattr(place, "RiverSpeculativeConfig", Speculation)
    verifying = {
        "river": {"verify": 4},
        "model_config__revision": None,
        "model_config__code_revision": None,
    }
    config = hook(hook(engine(**verifying)))
    assert config.speculative_config.num_speculative_tokens == 4
    # On the CPU vLLM turns it off itself.
    assert config.scheduler_config.async_scheduling is (None if cpu else False)
    # Where tokens exit it is vLLM's to decide.
    assert hook(engine()).scheduler_config.async_scheduling is None
    with pytest.raises(UnsupportedModelError, match="leave out --async-scheduling"):
        hook(engine(**verifying, scheduler_config__async_scheduling=True))


def test_wrong_settings_stop_the_engine() -> None:
    with pytest.raises(RiverError, match="'threshold' = 3"):
        hook(engine({"threshold": 3}))
    with pytest.raises(RiverError, match="'min_layers' = 13: must be between 1 and 12"):
        hook(engine({"min_layers": LAYERS + 1}))
    hook(engine({"min_layers": LAYERS}))


def test_the_hook_of_the_architecture_itself_runs_first(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []

    class Own:
        @staticmethod
        def verify_and_update_config(config: Any) -> None:
            assert config.scheduler_config.scheduler_cls is None
            ran.append(config)

    monkeypatch.setitem(module.MODELS_CONFIG_MAP, "LlamaForCausalLM", Own)
    config = hook(engine())
    assert ran == [config]


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


def test_weights_that_are_not_there_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(RiverError, match="river-vllm quantize someone/some-model --group-size"):
        hook(engine({"quantizer": "gptq", "cache_dir": str(tmp_path)}))
    with pytest.raises(RiverError, match=f"'{tmp_path}/config.json'"):
        hook(engine({"weights": str(tmp_path)}))


@pytest.mark.parametrize(
    ("river", "words"),
    [
        ({"resident_layers": 13}, r"'resident_layers' = 13: must be .* between 1 and 12"),
        ({"resident_layers": 4, "min_layers": 5}, r"'min_layers' = 5: must be between 1 and 4"),
        ({"resident_layers": 4, "threshold": 1.0}, r"'threshold' = 1\.0: must be below 1\.0"),
    ],
)
def test_what_the_resident_layers_cannot_do_is_refused(river: dict[str, Any], words: str) -> None:
    with pytest.raises(RiverError, match=words):
        hook(engine(river))


def test_fetching_needs_a_checkpoint_of_safetensors() -> None:
    river = {"resident_layers": 4, "deep": "fetch", "min_layers": 5, "threshold": 1.0}
    hook(engine(river))
    with pytest.raises(RiverError, match=r"--load-format dummy .*allowed: auto, hf, safetensors"):
        hook(engine(river, load_config__load_format="dummy"))


@pytest.mark.parametrize(("layers", "eager"), [("all", False), (LAYERS, False), (4, True)])
def test_nothing_is_compiled_where_layers_may_be_gone(
    layers: Any, eager: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = SimpleNamespace(is_cpu=lambda: True)
    monkeypatch.setattr(module, "current_platform", platform)
    config = hook(engine({"resident_layers": layers}))
    assert config.model_config.enforce_eager is eager


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    logger = SimpleNamespace(warning=lambda text, *words: said.append(text % words))
    monkeypatch.setattr(module, "logger", logger)
    return said


def test_without_a_compiler_the_model_runs_eager_with_one_warning(
    compiler: list[str | None], warnings: list[str]
) -> None:
    compiler[0] = "there is no C++ compiler (g++)"
    config = engine()
    hook(hook(config))
    assert config.model_config.enforce_eager
    assert len(warnings) == 1
    assert "there is no C++ compiler" in warnings[0] and "apt install g++" in warnings[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"model_config__enforce_eager": True},
        {"compilation_config__mode": CompilationMode.NONE},
    ],
    ids=["eager", "none"],
)
def test_who_asks_for_no_compiler_is_not_warned(
    compiler: list[str | None], warnings: list[str], changes: dict[str, Any]
) -> None:
    compiler[0] = "there is no C++ compiler (g++)"
    hook(engine(**changes))
    assert warnings == []


def test_with_a_compiler_the_model_is_compiled(warnings: list[str]) -> None:
    assert not hook(engine()).model_config.enforce_eager
    assert warnings == []
