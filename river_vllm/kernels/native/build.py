"""Compiles the kernel library, once, when River is installed.

    python -m river_vllm.kernels.native.build

Plain C++ with a C interface: it needs g++, and no headers of torch. Each back end is compiled for
its own instruction set, on any CPU. Back ends that the compiler does not know are left out.
``library.py`` chooses the best one for the CPU at load. No server start calls a compiler for it.

The library is linked against ``libgomp.so.1`` by name alone, so it shares torch's OpenMP runtime in
a process with torch. A second runtime would run threads of its own on the same cores. Clang links
a runtime of another name, so it is refused.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from struct import unpack_from

FOLDER = Path(__file__).parent
LIBRARY = FOLDER / "libriver.so"
FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno"),
    # No multiply-add is fused unless it is written so: float sums have the same bits everywhere.
    "-ffp-contract=off",
)

_AVX2 = ("-mavx2", "-mfma")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma")
_VNNI = (*_AVX512, "-mavx512vnni")
_BF16 = (*_VNNI, "-mavx512bf16")
BACKENDS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "amx": (*_BF16, "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
        "vnni_bf16": _BF16,
        "vnni": _VNNI,
        "avx512": _AVX512,
        "avxvnni": (*_AVX2, "-mavxvnni"),
        "avx2": _AVX2,
        "scalar": (),
    },
    "aarch64": {"neon": ("-march=armv8.2-a+dotprod",), "scalar": ()},
}
"""By machine: each back end's source file, best first, and its compiler flags. The names that users
meet, in ``RIVER_CPU_ISA`` and ``GET /river``, are in ``library.ORDER``."""
_BUILT_ON = {"amx": "vnni_bf16", "vnni_bf16": "vnni", "vnni": "avx512"}
"""Back ends that ask another one whether they run."""


class BuildError(Exception):
    """The library cannot be compiled here; the message says what to do."""


def fingerprint(machine: str | None = None) -> str:
    """A hash of what the library is compiled from: sources and flags."""
    sources = sorted((*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")))
    found = hashlib.sha256(repr((FLAGS, _backends(machine))).encode())
    for path in sources:
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def is_current(library: Path = LIBRARY) -> bool:
    """Whether ``library`` was compiled from the sources as they are, and nothing of it is missing.

    Loading a file that was cut short can end the process: the section headers are its last part.
    """
    if not library.exists():
        return False
    data = library.read_bytes()
    if fingerprint().encode() not in data:
        return False
    sections, size, count = (*unpack_from("<Q", data, 40), *unpack_from("<HH", data, 58))
    return sections + size * count <= len(data)


def build(library: Path = LIBRARY) -> list[str]:
    """Compile and link the library for this machine; returns the back ends left out.

    Raises:
        BuildError: there is no g++, or it cannot compile the plain back end.
    """
    compiler = find_compiler()
    with tempfile.TemporaryDirectory(prefix="river-build-") as folder:
        objects, left_out = compile_objects(compiler, Path(folder))
        linked = Path(folder, library.name)
        _run([*compiler, "-shared", "-fopenmp", *map(str, objects), "-o", str(linked)])
        # Another process may be building it too: a rename puts one whole file there.
        staged = library.with_name(f".{library.name}.{uuid.uuid4().hex}")
        try:
            shutil.copyfile(linked, staged)
            staged.chmod(0o644)
            staged.replace(library)
        except OSError as error:
            staged.unlink(missing_ok=True)
            raise BuildError(f"'{library}' cannot be written: {error.strerror}") from None
    return left_out


def compile_objects(
    compiler: Sequence[str], folder: Path, machine: str | None = None
) -> tuple[list[Path], list[str]]:
    """The library's object files in ``folder``, and the back ends left out.

    Args:
        machine: the target of a cross compiler; None for this machine.

    Raises:
        BuildError: the plain back end does not compile.
    """
    backends = _backends(machine)

    def compiled(name: str) -> Path | BuildError:
        return _compile(compiler, folder, f"{name}.cpp", backends[name])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = dict(zip(backends, pool.map(compiled, backends), strict=True))
    for name, found in made.items():
        if isinstance(found, BuildError):
            # Among others it may have lacked memory. A back end that fails alone is unknown to the
            # compiler.
            made[name] = compiled(name)
    if isinstance(made["scalar"], BuildError):
        raise made["scalar"]
    objects = {name: path for name, path in made.items() if isinstance(path, Path)}
    for name, base in reversed(_BUILT_ON.items()):
        if base not in objects:
            objects.pop(name, None)
    listed = "-DRIVER_BACKENDS(X)=" + " ".join(f"X({name})" for name in objects)
    made_of = f'-DRIVER_FINGERPRINT="{fingerprint(machine)}"'
    library = _compile(compiler, folder, "library.cpp", (listed, made_of))
    if isinstance(library, BuildError):
        raise library
    return [*objects.values(), library], [name for name in backends if name not in objects]


def find_compiler() -> list[str]:
    """g++, or the compiler and the options that ``CXX`` names.

    Raises:
        BuildError: there is none, it does not run, or it is clang.
    """
    named = os.environ.get("CXX")
    try:
        words = shlex.split(named) if named else ["g++" if shutil.which("g++") else "c++"]
    except ValueError as error:
        raise BuildError(f"CXX={named} cannot be read ({error})") from None
    if not words or shutil.which(words[0]) is None:
        where = f"CXX={named} is no program" if named else "there is no g++"
        raise BuildError(f"{where}; install g++ (Debian, Ubuntu: apt-get install g++)")
    if "clang" in _finished([*words, "--version"]).stdout:
        raise BuildError(
            f"{words[0]} is clang, whose OpenMP runtime is another than torch's; "
            "install g++, or name it: CXX=g++"
        )
    return words


def _backends(machine: str | None) -> dict[str, tuple[str, ...]]:
    return BACKENDS.get(machine or platform.machine(), {"scalar": ()})


def _compile(
    compiler: Sequence[str], folder: Path, source: str, options: Sequence[str]
) -> Path | BuildError:
    target = folder / Path(source).with_suffix(".o")
    try:
        _run([*compiler, *FLAGS, *options, "-c", str(FOLDER / source), "-o", str(target)])
    except BuildError as error:
        return error
    return target


def _run(command: list[str]) -> None:
    done = _finished(command)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}, no message"]
        reason = next((line for line in said if "error" in line), said[0])
        raise BuildError(f"{command[0]} fails: {reason.strip()}")


def _finished(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error.strerror}") from None


def main(library: Path = LIBRARY) -> int:
    """Build the library; without a compiler River runs on torch's kernel."""
    try:
        left_out = build(library)
    except (BuildError, OSError) as error:
        print(
            f"warning: River's kernels are not built ({error}); the river runs on torch's 4-bit "
            f"kernel, which is slower. With g++ there: {sys.executable} -m {__spec__.name}",
            file=sys.stderr,
        )
        return 1
    if left_out:
        print(f"River's kernels: this compiler has no {', '.join(left_out)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
