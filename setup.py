"""Compiles River's CPU kernels when it is installed; everything else is in pyproject.toml."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

MODULE = "river_vllm.kernels.native.libriver"
BUILD = Path(__file__).parent / "river_vllm" / "kernels" / "native" / "build.py"


def _load(path: Path) -> Any:
    """The module in a file, without the package around it and what that needs."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildKernels(build_ext):
    """One library for all instruction sets; without g++ none, and a warning."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        build = _load(BUILD)
        try:
            left_out = build.build(target)
        except (build.BuildError, OSError) as error:
            self.warn(f"River's kernels are not built: {error}")
            return
        if left_out:
            self.warn(f"River's kernels: this compiler has no {', '.join(left_out)}")


class PlatformWheel(bdist_wheel):
    """The library is no extension of Python: one wheel serves every version on a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[Extension(MODULE, sources=[], optional=True)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
