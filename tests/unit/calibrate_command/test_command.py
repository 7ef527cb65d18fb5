"""The command from prompts to files, on a made-up model instead of an engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from river_vllm.calibrate.passes import Measured, Policy, Text
from river_vllm.config import RiverConfig, load_config_file, parse_config, recorded_settings
from river_vllm.guarantee import ModelRecord
from river_vllm.weights.fingerprint import fingerprint
from server.calibrate import command
from server.calibrate.report import WeightBytes
from server.cli import engine
from server.cli.fields import EngineLimits
from server.cli.main import main
from tests.unit.calibrate.support import LAYERS, World
from tests.unit.calibrate_command.test_prompts import Tokenizer

ANSWER = tuple(range(17))
INFO = {
    "num_layers": LAYERS,
    "resident_layers": LAYERS,
    "fetched_layers": [],
    "group_sizes": [64],
    "lm_head": "backbone",
    "backbone_bytes": 73728 * LAYERS,
    "zero_points": "float",
    "dtype": "bfloat16",
    "kv_cache_dtype": "auto",
    "crossover": {"max_rows": None},
}
"""What the worker of the test reports."""
KNOWN = ModelRecord(name="made-up")
NOT_PROVEN = [
    "the model is not known to be the calibrated 'made-up': that takes the same hash of the "
    "weights, or the same commit and hash of the configuration"
]


class Llm:
    """What the command asks of vLLM's ``LLM``."""

    def __init__(self) -> None:
        model = SimpleNamespace(
            hf_config=SimpleNamespace(),
            model="made-up",
            revision=None,
            get_vocab_size=lambda: 1000,
            get_hidden_size=lambda: 64,
        )
        self.llm_engine = SimpleNamespace(
            model_config=model,
            vllm_config=SimpleNamespace(parallel_config=SimpleNamespace(tensor_parallel_size=1)),
        )

    def collective_rpc(self, name: str) -> list[dict[str, Any]]:
        assert name == "river_info"
        return [INFO]

    def get_tokenizer(self) -> Tokenizer:
        return Tokenizer()


class Engine:
    """Stands for ``TeacherForcedEngine``: 16 tokens of a made-up model per text."""

    world = World(600, seed=4)
    passes: list[tuple[Policy | None, int, int]]

    def __init__(self, llm: Llm) -> None:
        type(self).passes = []

    def answers(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[Text]:
        assert tokens == 17
        return [Text(tuple(prompt), ANSWER) for prompt in prompts]

    def run(self, policy: Policy | None, texts: Sequence[Text], first: int = 0) -> Measured:
        self.passes.append((policy, first, len(texts)))
        return self.world.measure(policy, slice(first, first + len(texts)))


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(command, "prepare", lambda: None)
    monkeypatch.setattr(command, "start", lambda *_: Llm())
    monkeypatch.setattr(command, "TeacherForcedEngine", Engine)
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(f"prompt {i}" for i in range(500)))
    return file


def _run(prompts: Path, *options: str) -> int:
    words = () if "--river-weights" in options else ("--river-group-size", "64")
    command = ["calibrate", "made-up", "--prompts", str(prompts), "--tokens", "17", *words]
    return main([*command, *options])


def test_settings_with_everything_that_they_rest_on(prompts: Path, tmp_path: Path) -> None:
    output, report = tmp_path / "river.yaml", tmp_path / "all.json"
    files = ("--output", str(output), "--json", str(report))
    assert _run(prompts, "--target-agreement", "0.97", *files) == 0

    config = parse_config(load_config_file(output), "output")
    record = config.calibration
    assert record is not None
    # A server that loads the file serves what was tested, as long as its kernel does.
    assert (config.quantizer, config.group_size, config.max_rows) == ("hqq", 64, "all")
    served = recorded_settings(config, {**INFO, "kernels": ["torch"]})
    assert record.doubts(record.chosen, KNOWN, served) == NOT_PROVEN
    rounding = recorded_settings(config, {**INFO, "zero_points": "integer"})
    doubts = record.doubts(record.chosen, KNOWN, rounding)
    assert doubts[:-1] == NOT_PROVEN and "zero_points = 'integer'" in doubts[-1]
    assert (record.model.name, record.prompts.source) == ("made-up", "prompts.txt")
    assert record.prompts.sha256 == sha256(prompts.read_bytes()).hexdigest()
    assert (record.prompts.pilot, record.prompts.tokens) == (64, 17)
    assert record.achieved.agreement > 0.97
    assert record.achieved.p_value <= record.target.delta == 0.1

    document = json.loads(report.read_text())
    chosen = document["chosen"]
    assert chosen["passed"] and chosen["bound"] >= 0.97
    assert chosen["threshold"] == config.threshold == record.chosen.threshold
    assert chosen["mean_exit_layer"] == pytest.approx(record.achieved.mean_exit_layer, abs=1e-3)
    assert len(document["similarity_quantiles"]) == LAYERS - 1
    assert document["forced_exits"][0]["layer"] == 1


@pytest.mark.parametrize(
    ("kernel", "tested"), [(None, "dequantize"), ("torch", "dequantize"), ("vllm", "vllm")]
)
def test_the_kernel_of_the_test_computes_what_the_servers_will(
    kernel: str | None, tested: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expanded weights are the same product for every kernel but the one that rounds zeros."""
    made: dict[str, Any] = {}
    monkeypatch.setattr("vllm.LLM", lambda model, **options: made.update(options), raising=False)
    monkeypatch.setattr("river_vllm.engine_args", lambda model, config, **_: {"config": config})
    monkeypatch.setattr(engine, "options_of", lambda *_, **__: {})
    settings = {} if kernel is None else {"kernel": kernel}
    engine.start("m", RiverConfig(**settings), EngineLimits())
    assert made["config"].kernel == tested
    assert made["config"].max_rows == "all"


def test_a_checkpoints_own_quantiser_and_group_size_are_not_set(prompts: Path, tmp_path) -> None:
    """They are read from its folder, and the file would contradict it."""
    weights, output = tmp_path / "awq", tmp_path / "river.yaml"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"4 bit")
    assert _run(prompts, "--river-weights", str(weights), "--output", str(output)) == 0
    config = parse_config(load_config_file(output), "output")
    assert config.weights == str(weights)
    assert not {"quantizer", "group_size"} & config.model_fields_set
    record = config.calibration
    assert record is not None
    assert record.weights == fingerprint(str(weights))
    served = recorded_settings(config, INFO)
    assert record.doubts(record.chosen, KNOWN, served) == NOT_PROVEN


def test_weights_that_were_made_with_the_prompts_are_pointed_out(prompts: Path, tmp_path, capsys):
    digest = sha256(prompts.read_bytes()).hexdigest()
    made = {"prompts": "prompts.txt", "prompts_sha256": [digest], "half": None}
    config = {"quantization_config": {"made_with": made}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _run(prompts, "--river-weights", str(tmp_path))
    assert str(tmp_path) in capsys.readouterr().err


def test_the_speedup_by_bytes_is_one_at_full_depth_and_falls_with_it() -> None:
    found = WeightBytes.of(INFO, head := 128000.0, 64)
    assert found.river == found.backbone / 4 * (1 + 4 / 32)
    assert found.speedup(LAYERS) == pytest.approx(1.0)
    assert found.speedup(1) > found.speedup(2) > 1.0
    assert WeightBytes.of(INFO | {"lm_head": "river"}, head, 64).river_head < head


def test_prompts_that_are_too_long_are_counted_and_the_guarantee_is_not_for_them(
    prompts: Path, tmp_path: Path
) -> None:
    longest = 1024 - 17
    rows = [prompts.read_text(), *("x" * longest for _ in range(3)), "x" * (longest - 1)]
    prompts.write_text("\n".join(rows))
    output, report = tmp_path / "river.yaml", tmp_path / "all.json"
    files = ("--output", str(output), "--json", str(report))
    assert _run(prompts, "--target-agreement", "0.9", *files) == 0
    said = json.loads(report.read_text())["prompts"]
    assert (said["too_long"], said["longest"]) == (3, longest)
    record = parse_config(load_config_file(output), "output").calibration
    assert record is not None
    assert record.prompts.longest == longest
    assert f"{longest} tokens" in record.guarantee


def test_pilot_and_test_share_no_prompt(prompts: Path) -> None:
    assert _run(prompts) == 0
    pilot = {first for policy, first, _ in Engine.passes if policy and policy.threshold == -1.0}
    assert 0 in pilot
    tested = [(first, first + count) for _, first, count in Engine.passes if first >= 64]
    assert tested
    assert all(stop <= 500 for _, stop in tested)
    assert all(first + count <= 64 for _, first, count in Engine.passes if first < 64)


def test_what_cannot_be_shown_is_said(prompts: Path, tmp_path, capsys) -> None:
    output, report = tmp_path / "river.yaml", tmp_path / "all.json"
    files = ("--output", str(output), "--json", str(report))
    assert _run(prompts, "--target-agreement", "0.9999", "--test-prompts", "100", *files) == 1
    assert not output.exists()
    document = json.loads(report.read_text())
    assert document["chosen"] is None
    assert [test["passed"] for test in document["tests"]] == [False]
    captured = capsys.readouterr()
    assert "could not show" in captured.out and "99.99%" in captured.out
    assert "100 prompts" in captured.err


def test_check_measures_the_files_settings_on_all_prompts(prompts: Path, tmp_path: Path) -> None:
    settings, report = tmp_path / "river.yaml", tmp_path / "check.json"
    settings.write_text(f"threshold: -1.0\nmin_layers: {LAYERS - 1}\ngroup_size: 64\n")
    assert _run(prompts, "--check", str(settings), "--json", str(report)) == 0
    document = json.loads(report.read_text())
    assert document["prompts"]["tested"] == document["chosen"]["prompts"] == 500
    assert document["chosen"]["exit_layers"] == {str(LAYERS - 1): 500 * 16}
    settings.write_text("threshold: -1.0\nmin_layers: 1\ngroup_size: 64\n")
    assert _run(prompts, "--check", str(settings)) == 1


@pytest.mark.parametrize("never", ["threshold: 1.0", f"min_layers: {LAYERS}"])
def test_there_must_be_something_to_check(never: str, prompts: Path, tmp_path: Path) -> None:
    settings = tmp_path / "river.yaml"
    settings.write_text(f"{never}\ngroup_size: 64\n")
    assert _run(prompts, "--check", str(settings)) == 2


@pytest.mark.parametrize(
    ("rows", "long", "said"), [(70, 70, "70 prompts"), (500, 70, "70 prompts"), (500, 20, "20 p")]
)
def test_too_few_prompts_where_answers_of_one_token_do_not_count(
    rows: int, long: int, said: str, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They have no decode step."""
    lengths = [17 if i < long else 1 for i in range(rows)]
    made = ({"prompt": f"p {i}", "answer": "x" * length} for i, length in enumerate(lengths))
    prompts.write_text("\n".join(map(json.dumps, made)))
    assert _run(prompts, "--answers", "answer", "--test-prompts", "436") == 2
    assert said in capsys.readouterr().err
