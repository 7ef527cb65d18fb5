"""``river-vllm serve`` with what River does not go with: one line, exit status 1, no traceback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from experiments.make_quantized import write_copy

pytestmark = pytest.mark.engine

SPECULATION = json.dumps({"method": "ngram", "num_speculative_tokens": 2})

SMALL = ["--enforce-eager", "--max-model-len", "128"]
REFUSED: dict[str, tuple[str, list[str], str]] = {
    "threshold": ("plain", ["--river-threshold", "2"], "--river-threshold: '2': input should be"),
    "pipeline": ("plain", ["--pipeline-parallel-size", "2"], "pipeline parallelism"),
    "speculation": ("plain", ["--speculative-config", SPECULATION], "speculative decoding"),
    "pooling": ("plain", ["--runner", "pooling"], "pooling models"),
    "scheduler": ("plain", ["--scheduler-cls", "my.Scheduler"], "scheduler (my.Scheduler"),
    "context": ("plain", ["--max-model-len", "1000000"], "max_model_len (1000000) is greater"),
    "tools": ("plain", ["--enable-auto-tool-choice"], "tool-call-parser"),
    "option": ("plain", ["--river-treshold", "1"], "--river-treshold 1 (did you mean --river-"),
    "scale": ("scale", SMALL, "lacks 'weight_scale' of projection 'model.layers.1.mlp.down_proj'"),
    "shape": (
        "shape",
        SMALL,
        "'weight' of projection 'model.layers.0.self_attn.qkv_proj' has shape",
    ),
    "groups": ("groups", SMALL, "'group_size' = 48: 4-bit weights are served in groups of 32"),
    "experts": ("experts", [], "'MixtralForCausalLM' is not supported: mixture of experts"),
    "unreadable": ("nothing", [], "/nothing' cannot be read: "),
    "port": ("plain", ["--port", "TAKEN"], "is in use by another program; choose another with --"),
}
"""Checkpoint, arguments, and words of the refusal. Others: tests/unit/plugin/test_hook.py,
tests/unit/model/test_attach.py."""

# Imports once, and a process of its own for each command.
DRIVER = """
import json, os, sys
from pathlib import Path
import vllm.entrypoints.cli.serve, vllm.entrypoints.launchers.cli_args
from server.cli.main import main

folder = Path(sys.argv[1])
for name, arguments in json.loads(sys.argv[2]).items():
    child = os.fork()
    if child == 0:
        for stream, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(folder / f"{name}.{stream}", os.O_WRONLY | os.O_CREAT), number)
        status = 99
        try:
            status = main(["serve", *arguments])
        except SystemExit as stop:
            status = stop.code
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    (folder / f"{name}.status").write_text(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""


@pytest.fixture(scope="module")
def refusals(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every command has run; its status and what it wrote are in this folder."""
    folder = tmp_path_factory.mktemp("refusals")
    shutil.copytree(tiny_qwen2, folder / "plain")
    _break(tiny_qwen2, folder)
    (folder / "experts").mkdir()
    experts = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
    (folder / "experts" / "config.json").write_text(json.dumps(experts))
    commands = {
        name: [str(folder / checkpoint), "--port", "1", *arguments]
        for name, (checkpoint, arguments, _) in REFUSED.items()
    }
    (folder / "nothing").mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "VLLM_LOGGING_LEVEL"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = json.dumps(commands).replace("TAKEN", str(taken.getsockname()[1]))
        subprocess.run(
            [sys.executable, "-c", DRIVER, str(folder), words],
            env=environment,
            timeout=200,
            check=True,
        )
    return folder


def _break(model: Path, folder: Path) -> None:
    """Write quantised copies that lack a scale, or have a wrong shape or group size."""
    for name, form in (("scale", "w8a8"), ("shape", "w8a8"), ("groups", "w4a16")):
        write_copy(model, folder / name, form)
        tensors = load_file(folder / name / "model.safetensors")
        if name == "scale":
            del tensors["model.layers.1.mlp.down_proj.weight_scale"]
        elif name == "shape":
            key = "model.layers.0.self_attn.k_proj.weight"
            tensors[key] = tensors[key][:, :64].contiguous()
        else:
            path = folder / name / "config.json"
            config = json.loads(path.read_text())
            groups = config["quantization_config"]["config_groups"]
            groups["group_0"]["weights"]["group_size"] = 48
            path.write_text(json.dumps(config))
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", REFUSED)
def test_one_line(refusals: Path, name: str) -> None:
    written = (refusals / f"{name}.err").read_text()
    last = written.strip().splitlines()[-1]
    assert last.startswith("river-vllm") and "error: " in last
    assert REFUSED[name][2] in last
    # Where weights are read, the engine's process has written what it met before this line.
    if name not in ("scale", "shape"):
        assert "Traceback" not in written + (refusals / f"{name}.out").read_text()
    assert (refusals / f"{name}.status").read_text() in ("1", "2")
