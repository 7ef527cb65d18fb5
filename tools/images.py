#!/usr/bin/env python3
"""Build the images that need no GPU, with docker or podman, under Compose's names.

    tools/images.py [OPTION ...]     such as --build-arg PYTHON_IMAGE=mirror.example.com/python:3.11

Options go to the builder unchanged. Exit status: 0 when every image was built.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("cpu", "client")
ENGINES = ("docker", "podman")


def engine() -> str | None:
    """The first of docker and podman that is in PATH and answers."""
    for name in filter(shutil.which, ENGINES):
        if subprocess.run([name, "info"], capture_output=True).returncode == 0:
            return name
    return None


def image(target: str) -> str:
    """The image name of a Dockerfile target, as in compose.yaml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return f"river-vllm:{project['version']}-{target}"


def build_command(program: str, target: str, options: list[str]) -> list[str]:
    """The command line that builds ``target`` of this checkout."""
    # Podman's own image format has no health check.
    own = ["--format", "docker"] if program == "podman" else []
    return [program, "build", *own, *options, "--target", target, "--tag", image(target), str(ROOT)]


def main() -> int:
    """Command line entry."""
    program = engine()
    if program is None:
        print("error: no docker or podman that answers is in PATH", file=sys.stderr)
        return 1
    for target in TARGETS:
        command = build_command(program, target, sys.argv[1:])
        print(" ".join(command), flush=True)
        if subprocess.run(command, stdin=subprocess.DEVNULL).returncode != 0:
            print(f"error: the image of '{target}' was not built (see above)", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
