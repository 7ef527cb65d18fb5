"""Compiling the kernels: which compilers do, and what is left out."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from river_vllm.kernels.native import build
from river_vllm.kernels.native.build import BuildError

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


def test_no_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BuildError, match=r"there is no g\+\+; install g\+\+"):
        build.find_compiler()


def test_a_compiler_that_cannot_be_read_is_an_error_of_the_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", 'g++ "')
    with pytest.raises(BuildError, match=r'CXX=g\+\+ " cannot be read'):
        build.find_compiler()


def test_a_named_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match="CXX=no-such-compiler is no program"):
        build.find_compiler()


def test_clang_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its OpenMP runtime is another than torch's, whatever it is called."""
    monkeypatch.setenv("CXX", str(script(tmp_path, 'echo "Debian clang version 14.0.6"')))
    with pytest.raises(BuildError, match="is clang, whose OpenMP runtime"):
        build.find_compiler()


@pytest.mark.skipif(shutil.which("clang++") is None, reason="there is no clang")
def test_the_clang_of_this_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "clang++")
    with pytest.raises(BuildError, match="CXX=g\\+\\+"):
        build.find_compiler()


def test_a_program_that_cannot_be_run_is_an_error_of_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "compiler"
    path.write_bytes(b"\x7fELF nothing")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    with pytest.raises(BuildError, match="Exec format error"):
        build.find_compiler()


@pytest.mark.parametrize(
    ("flags", "left_out"),
    [
        ((), []),
        (("-mamx-tile",), ["amx"]),
        (("-mavxvnni",), ["avxvnni"]),
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


def test_a_vnni_that_is_left_out_takes_its_dependants_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason: the middle of the chain fails, the ends compile."""
    known = dict(build.BACKENDS["x86_64"])
    known["vnni"] = ("-unknown",)
    monkeypatch.setitem(build.BACKENDS, "x86_64", known)
    compiler = refusing(tmp_path, "-unknown")
    _, missing = build.compile_objects([str(compiler)], tmp_path, "x86_64")
    assert missing == ["amx", "vnni_bf16", "vnni"]


def test_what_fails_once_beside_the_others_is_tried_again_alone(tmp_path: Path) -> None:
    """A compiler that is killed for lack of memory says nothing about the instruction set."""
    flag = tmp_path / "failed"
    touch = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done'
    once = f'case "$*" in *amx.cpp*) [ -e {flag} ] || {{ : > {flag}; exit 137; }};; esac'
    compiler = script(tmp_path, f"{once}\n{touch}")
    _, left_out = build.compile_objects([str(compiler)], tmp_path, "x86_64")
    assert flag.exists() and left_out == []


def test_the_library_lists_what_was_compiled(tmp_path: Path) -> None:
    listed = tmp_path / "listed"
    compiler = refusing(tmp_path, "-mavx512f", "-mavxvnni")
    note = f'echo "$a" > {shlex.quote(str(listed))}'
    log = f"for a; do case $a in -DRIVER_BACKENDS*) {note}; esac; done"
    compiler.write_text(compiler.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\n{log}\n"))
    build.compile_objects([str(compiler)], tmp_path, "x86_64")
    assert listed.read_text().strip() == "-DRIVER_BACKENDS(X)=X(avx2) X(scalar)"


def test_without_the_plain_back_end_there_is_no_library(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="/bin/false fails"):
        build.compile_objects(["/bin/false"], tmp_path, "x86_64")


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("x86_64", "amx"),
        ("aarch64", "neon"),
        ("riscv64", "scalar"),
    ],
)
def test_every_machine_has_back_ends(machine: str, expected: str, tmp_path: Path) -> None:
    objects, _ = build.compile_objects([str(refusing(tmp_path))], tmp_path, machine)
    assert objects[0].stem == expected
    assert objects[-2].stem == "scalar"


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
    library.write_bytes(b"")
    assert build.main(library) == 0
    assert build.is_current(library)


def test_a_compiler_may_be_named_with_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", f"{script(tmp_path, 'echo g++ 12')} -m64")
    assert build.find_compiler() == [str(tmp_path / "compiler"), "-m64"]


@needs_gxx
@pytest.mark.usefixtures("small")
def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BuildError, match=r"libriver\.so' cannot be written"):
        build.build(tmp_path / "none" / "libriver.so")


@pytest.mark.parametrize("compiler", ["/bin/false", "no-such-compiler", "clang", "broken"])
def test_an_install_without_a_compiler_goes_on(
    compiler: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if compiler == "clang":
        compiler = str(script(tmp_path, "echo clang version 19.1.7"))
    elif compiler == "broken":
        compiler = str(tmp_path / "broken")
        Path(compiler).write_bytes(b"\x7fELF nothing")
        Path(compiler).chmod(0o755)
    monkeypatch.setenv("CXX", compiler)
    library = tmp_path / "libriver.so"
    assert build.main(library) == 1
    assert not library.exists()
    out, error = capsys.readouterr()
    assert out == ""
    (line,) = error.splitlines()
    assert line.startswith("warning: River's kernels are not built (")
    assert compiler in line
    assert line.endswith("-m river_vllm.kernels.native.build")


def test_what_is_left_out_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", str(refusing(tmp_path, "-mamx-tile")))
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
    assert build.main(tmp_path / "libriver.so") == 0
    assert capsys.readouterr().err == "River's kernels: this compiler has no amx\n"
