"""Compiling the kernels: which compilers do, and what is left out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from river_vllm.kernels.native import build

GXX = shutil.which("g++")
needs_gxx = pytest.mark.skipif(GXX is None, reason="there is no g++")

PLAIN = {"scalar": ()}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain back end alone, not optimised: what is tested is how it is put together."""
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))
    monkeypatch.setattr(build, "_backends", lambda machine: PLAIN)


def script(folder: Path, lines: str) -> Path:
    """A compiler of our own."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return path


def refusing(folder: Path, *flags: str) -> Path:
    """g++ as it was before it knew ``flags``; others pass, and nothing is compiled."""
    cases = "\n".join(
        f'*" {flag} "*) echo "error: unrecognized option {flag}" >&2; exit 1;;' for flag in flags
    )
    touch = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done'
    return script(folder, f'case " $* " in\n{cases}\nesac\n{touch}')


@pytest.mark.parametrize(
    ("flags", "left_out"),
    [
        ((), []),
        (("-mamx-tile",), ["amx"]),
        (("-mamx-tile", "-mavxvnni"), ["amx", "avxvnni"]),
        # Others ask it whether they run, so they cannot do without.
        (("-mavx512bf16",), ["amx", "vnni_bf16"]),
        (("-mavx512vnni",), ["amx", "vnni_bf16", "vnni"]),
        (("-mavx512f",), ["amx", "vnni_bf16", "vnni", "avx512"]),
        (("-mavx2", "-mavx512f"), [n for n in build.BACKENDS["x86_64"] if n != "scalar"]),
    ],
)
def test_an_older_compiler_leaves_out_what_it_does_not_know(
    flags: tuple[str, ...], left_out: list[str], tmp_path: Path
) -> None:
    compiler = refusing(tmp_path, *flags)
    objects, missing = build.compile_objects([str(compiler)], tmp_path, "x86_64")
    assert missing == left_out
    kept = [name for name in build.BACKENDS["x86_64"] if name not in left_out]
    assert [path.stem for path in objects] == [*kept, "library"]


def test_what_fails_once_beside_the_others_is_tried_again_alone(tmp_path: Path) -> None:
    """A compiler that is killed for lack of memory says nothing about the instruction set."""
    flag = tmp_path / "failed"
    touch = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done'
    once = f'case "$*" in *amx.cpp*) [ -e {flag} ] || {{ : > {flag}; exit 137; }};; esac'
    compiler = script(tmp_path, f"{once}\n{touch}")
    _, left_out = build.compile_objects([str(compiler)], tmp_path, "x86_64")
    assert flag.exists() and left_out == []


def test_an_unknown_machine_has_the_plain_back_end(tmp_path: Path) -> None:
    objects, _ = build.compile_objects([str(refusing(tmp_path))], tmp_path, "riscv64")
    assert [path.stem for path in objects] == ["scalar", "library"]


def test_the_fingerprint_is_that_of_sources_and_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (*build.FOLDER.glob("*.cpp"), *build.FOLDER.glob("*.h")):
        shutil.copy(path, tmp_path)
    first = build.fingerprint()
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    assert build.fingerprint() == first
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
    second = build.fingerprint()
    assert second != first
    with (tmp_path / "numbers.h").open("a") as file:
        file.write("\n")
    assert build.fingerprint() not in (first, second)


@needs_gxx
@pytest.mark.usefixtures("small")
def test_a_library_is_made_and_known_as_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    library = tmp_path / "libriver.so"
    assert not build.is_current(library)
    assert build.build(library) == []
    assert build.is_current(library)
    assert [path.name for path in tmp_path.iterdir()] == ["libriver.so"]
    with monkeypatch.context() as changed:
        changed.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
        assert not build.is_current(library)
    # Asked for by name it is made again: the compiler may know more instruction sets by now.
    monkeypatch.setenv("CXX", str(refusing(tmp_path)))
    assert build.main(library) == 0
    assert library.read_bytes() == b""


@pytest.mark.parametrize(
    "compiler", ["/bin/false", "no-such-compiler", 'g++ "', None, "clang", "broken"], ids=str
)
def test_an_install_without_a_compiler_goes_on(
    compiler: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With one line. Clang's OpenMP runtime is another than torch's, whatever it is called."""
    named = compiler
    if compiler == "clang":
        named = str(script(tmp_path, "echo clang version 19.1.7"))
    elif compiler == "broken":
        named = str(tmp_path / "broken")
        Path(named).write_bytes(b"\x7fELF nothing")
        Path(named).chmod(0o755)
    monkeypatch.setenv("CXX", named or "")
    if named is None:
        monkeypatch.setenv("PATH", "/nowhere")
    library = tmp_path / "libriver.so"
    assert build.main(library) == 1
    assert not library.exists()
    out, error = capsys.readouterr()
    (line,) = error.splitlines()
    assert out == "" and (named or "g++") in line
    assert "-m river_vllm.kernels.native.build" in line


def test_what_is_left_out_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a compiler that is named with options."""
    monkeypatch.setenv("CXX", f"{refusing(tmp_path, '-mamx-tile')} -m64")
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
    assert build.main(tmp_path / "libriver.so") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "amx" in line
