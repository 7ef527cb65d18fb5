"""``river-vllm quantize`` on a stock engine, and a river that reads what it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from river_vllm import RiverConfig, engine_args
from river_vllm.config import REPORTED, load_config_file, parse_config, recorded_settings
from river_vllm.weights.formats import CheckpointFolder, format_of
from river_vllm.weights.quantizers import QUANTIZERS
from tests.support import engines
from tests.support.engines import generate, greedy
from tests.support.prompts import PROMPTS
from tests.support.server import START_SECONDS

pytestmark = pytest.mark.engine

COMMAND = (sys.executable, "-m", "server.cli.main", "quantize")


@pytest.fixture(scope="session")
def quantized(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _quantize(tiny_qwen2, tmp_path_factory.mktemp("quantize"))


def _quantize(model: Path, folder: Path) -> dict[str, Any]:
    """The command's own process, on the model's own answers; its report."""
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(p.replace("\n", " ") for p in PROMPTS))
    # Little memory for Hessians: two layers at a time, so the text is read three times.
    done = subprocess.run(
        [
            *(*COMMAND, str(model), "--prompts", str(prompts)),
            *("--tokens", "600", "--answer-tokens", "40", "--max-model-len", "256"),
            *("--hessian-gib", str(2.5 * 4 * (3 * 128**2 + 256**2) / 2**30)),
            *("--kv-cache-gib", "0.25", "--json", str(folder / "report.json")),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"RIVER_CACHE_DIR": str(folder / "cache")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads((folder / "report.json").read_text()))


@pytest.fixture(scope="session")
def river_calibrated(tiny_qwen2: Path, quantized: dict[str, Any]) -> Any:
    config = RiverConfig(quantizer="gptq", scope="token", max_rows="all")
    return engines.river_engine(tiny_qwen2, config, max_logprobs=64, logprobs_mode="raw_logits")


def test_the_report(tiny_qwen2: Path, quantized: dict[str, Any]) -> None:
    assert quantized["folder"] == str(tiny_qwen2 / "river" / "gptq-g128")
    assert len(quantized["layers"]) == 6
    # Every layer has read the whole text, whichever pass it was in.
    assert len({layer["tokens"] for layer in quantized["layers"]}) == 1
    assert quantized["tokens"] > 400
    assert all(0 < layer["output_error"] < 0.2 for layer in quantized["layers"])


def test_the_weights_are_the_backbones(tiny_qwen2: Path, quantized: dict[str, Any]) -> None:
    _assert_near(quantized, load_file(tiny_qwen2 / "model.safetensors"))


def test_of_an_int8_backbone(tiny_qwen2: Path, tiny_int8: Path, tmp_path: Path) -> None:
    """Its codes times their scales are near to the weights that they were made from."""
    _assert_near(_quantize(tiny_int8, tmp_path), load_file(tiny_qwen2 / "model.safetensors"))
    config = RiverConfig(quantizer="gptq", scope="token", max_rows="all")
    engine = engines.river_engine(tiny_int8, config)
    (info,) = engine.collective_rpc("river_info")
    assert info["quantizer"] == "gptq"
    found = generate(engine, PROMPTS[:2], greedy(4, {"threshold": -1.0, "min_layers": 2}))
    assert all(one.exit_layers[1:] == [2, 2, 2] for one in found)


def _assert_near(quantized: dict[str, Any], backbone: dict[str, torch.Tensor]) -> None:
    checkpoint = CheckpointFolder(Path(quantized["folder"]))
    read = format_of(checkpoint).read
    names = [name for name in backbone if name.endswith("_proj.weight")]
    assert len(names) == 42
    for name in names:
        weight = backbone[name]
        made = read(checkpoint, name.removesuffix(".weight"))
        error = (made.dequantize() - weight.float()).norm() / weight.float().norm()
        nearest = QUANTIZERS["rtn"](weight, 128).dequantize() - weight.float()
        # Codes that make up for each other are further from the weight, by less than twice.
        assert float(error) < 2 * float(nearest.norm() / weight.float().norm())


def test_a_river_reads_them(quantized: dict[str, Any], river_calibrated: Any) -> None:
    info = river_calibrated.collective_rpc("river_info")[0]
    assert info["quantizer"] == "gptq"
    assert info["weights"]["folder"] == quantized["folder"]
    assert info["weights"]["made"] == 0
    assert "vllm" not in info["kernels"], "it needs integer zero points"
    assert {name: info[name] for name in REPORTED} == {
        "group_sizes": [128],
        "zero_points": "float",
        "dtype": "bfloat16",
        "kv_cache_dtype": "auto",
    }


def test_it_is_nearer_to_the_backbone_than_a_river_made_without_text(
    river_calibrated: Any, river_qwen2: Any
) -> None:
    """The first token that leaves, after the same prompt; the other river has HQQ's weights."""
    errors = {}
    for name, engine in (("ours", river_calibrated), ("hqq", river_qwen2)):
        exact = generate(engine, PROMPTS, greedy(2, {"enabled": False}, logprobs=64))
        river = generate(engine, PROMPTS, greedy(2, {"threshold": -1.0}, logprobs=64))
        errors[name] = 0.0
        for ours, theirs in zip(river, exact, strict=True):
            assert ours.tokens[0] == theirs.tokens[0], "the prompt runs on the backbone"
            shared = sorted(set(ours.logprobs[1]) & set(theirs.logprobs[1]))
            a = torch.tensor([ours.logprobs[1][token] for token in shared])
            b = torch.tensor([theirs.logprobs[1][token] for token in shared])
            errors[name] += float((a - b).square().mean())
    assert errors["ours"] < 0.8 * errors["hqq"]


def test_without_weights_the_command_is_named(tiny_qwen2: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    config = RiverConfig(quantizer="gptq", group_size=64)
    arguments = engine_args(str(tiny_qwen2), config, max_model_len=256)
    with pytest.raises(Exception, match=r"river-vllm quantize .* --group-size 64"):
        EngineArgs(model=str(tiny_qwen2), **arguments).create_engine_config()


@pytest.mark.parametrize("name", ["qwen2", "int8"])
def test_calibrate_chooses_and_a_server_would_take_it(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The command's own process, from prompts to a file whose guarantee covers what it says."""
    model, river = (request.getfixturevalue(f"{kind}_{name}") for kind in ("tiny", "river"))
    prompts, chosen = tmp_path / "prompts.txt", tmp_path / "river.yaml"
    prompts.write_text("\n".join(f"Count from {number}:" for number in range(60)))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "server.cli.main", "calibrate", str(model)),
            *("--prompts", str(prompts), "--pilot-prompts", "12", "--test-prompts", "40"),
            *("--tokens", "6", "--max-model-len", "128", "--kv-cache-gib", "0.1"),
            *("--target-agreement", "0.2", "--delta", "0.2", "--no-progress"),
            *("--output", str(chosen), "--json", str(tmp_path / "report.json")),
        ],
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "mean exit layer" in done.stdout
    record = parse_config(load_config_file(chosen), chosen.name).calibration
    assert record is not None
    assert record.achieved.agreement > 0.2
    (info,) = river.collective_rpc("river_info")
    served = RiverConfig(**{**record.settings, **record.chosen.model_dump(), "max_rows": "all"})
    doubts = record.doubts(record.chosen, record.model, recorded_settings(served, info))
    assert doubts == []
