"""Loading the compiled kernels, and what happens where that cannot be."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from river_vllm.kernels.native import build, library
from river_vllm.kernels.native.library import CAP, ORDER, Unavailable, backend, backends
from tests.support.processes import forked
from tests.unit.kernels.support import running_backends

NAMES = [b.name for b in running_backends()]
built = pytest.mark.skipif(not NAMES, reason="the kernel library is not built")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing chosen yet, and no cap from outside."""
    monkeypatch.delenv(CAP, raising=False)
    backend.cache_clear()
    yield
    backend.cache_clear()


@built
def test_back_ends_come_best_first_and_end_with_plain_code() -> None:
    places = [ORDER.index(name) for name in NAMES]
    assert places == sorted(places, reverse=True)
    assert NAMES[-1] == "scalar"


@built
def test_plain_code_that_nobody_asked_for_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a compiler that knew none of this CPU's instruction sets."""
    said: list[str] = []
    plain = [b for b in backends() if b.name == "scalar"]
    monkeypatch.setattr(library, "backends", lambda: plain)
    monkeypatch.setattr(library.logger, "warning", lambda text, *_: said.append(text))
    assert backend() is plain[0] and len(said) == 1
    backend.cache_clear()
    monkeypatch.setenv(CAP, "scalar")
    assert backend() is plain[0] and len(said) == 1


@built
@pytest.mark.parametrize("name", ORDER)
def test_the_cap_is_the_best_that_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAP, f" {name.upper()} ")
    found = backend()
    assert found is not None and found is backend()
    allowed = [n for n in NAMES if ORDER.index(n) <= ORDER.index(name)]
    assert found.name == allowed[0]


@built
@pytest.mark.parametrize(
    "wrong", ["missing", "other sources", "cut short", "no library", "another machine"]
)
def test_a_library_that_cannot_be_used_is_not_loaded(wrong: str, tmp_path: Path) -> None:
    """Loading one that was cut short would end the process: what is mapped lies past its end."""
    content, made = build.LIBRARY.read_bytes(), build.fingerprint().encode()
    if wrong == "other sources":
        content = content.replace(made, made[::-1])
    elif wrong == "cut short":
        content = content[: content.index(made) + 4096]
    elif wrong == "no library":
        content = bytes(4096) + made
    elif wrong == "another machine":  # ELF's e_machine: RISC-V
        content = content[:18] + (0xF3).to_bytes(2, "little") + content[20:]
    path = tmp_path / "libriver.so"
    if wrong != "missing":
        path.write_bytes(content)
    with pytest.raises(Unavailable, match=f"'{path}'"):
        backends(path)


def reason_against(path: Path) -> str | None:
    try:
        backends(path)
    except Unavailable as error:
        return str(error)
    return None


@built
def test_a_library_that_brings_another_runtime_is_refused(tmp_path: Path) -> None:
    """As clang's would: here libgomp once more, under another name."""
    try:
        compiler = build.find_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    asked = subprocess.run(
        [*compiler, "-print-file-name=libgomp.so.1"], capture_output=True, text=True, check=True
    )
    own = Path(asked.stdout.strip())
    if not own.is_absolute():
        pytest.skip("g++ does not say where its libgomp is")
    other = tmp_path / "libgomp.so.9"
    other.write_bytes(own.read_bytes().replace(b"libgomp.so.1\0", b"libgomp.so.9\0"))
    source, path = tmp_path / "other.cpp", tmp_path / "libriver.so"
    source.write_text(
        f'extern "C" const char* fingerprint() {{ return "{build.fingerprint()}"; }}\n'
        'extern "C" const void* river_backends() { static void* none = nullptr; return &none; }\n'
    )
    subprocess.run(
        [*compiler, "-shared", "-fPIC", str(source), "-Wl,--no-as-needed", str(other),
         f"-Wl,-rpath,{tmp_path}", "-o", str(path)],
        check=True,
    )  # fmt: skip
    reason = forked(reason_against, path)
    assert reason is not None
    assert "brings an OpenMP runtime of its own" in reason
    assert "libgomp.so.9" in reason
