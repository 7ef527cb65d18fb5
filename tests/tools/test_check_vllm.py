"""tools/check_vllm.py reads what another vLLM changes under River, importing neither."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tools import check_vllm
from tools.check_vllm import ARGUMENTS, BODY, GONE, ROOT, changes, installed
from tools.seams.source import Place, Tree
from tools.seams.uses import uses

RIVER = {
    "river_vllm/compat.py": """
        from vllm import SamplingParams
        from vllm.config import VllmConfig
        from vllm.helpers import lost, moved, shared
        from vllm.platforms import current_platform
    """,
    "river_vllm/mixin.py": """
        class Mixin:
            river_own: int
            def run(self, x):
                self.river_own = self.batch + self.gone_field
                return super().run(x)
            def only_ours(self):
                return self.river_own
    """,
    "river_vllm/worker.py": """
        from river_vllm.mixin import Mixin
        from vllm.worker import Runner
        class RiverRunner(Mixin, Runner):
            pass
    """,
    "river_vllm/late.py": """
        from river_vllm.mixin import Mixin
        def make(fast):
            from vllm.worker import Fast, Slow
            base = Fast if fast else Slow
            return type(f"River{base.__name__}", (Mixin, base), {})
    """,
    "river_vllm/hook.py": """
        from river_vllm.compat import VllmConfig, current_platform
        def hook(vllm_config: VllmConfig):
            model, other = vllm_config.model_config, 1
            return model.layers, model.dtype, current_platform.is_cpu()
    """,
    "river_vllm/patches.py": """
        from vllm import replaced
        from vllm.replaced import inner
        def install():
            replaced.function = len
            setattr(replaced, "second", len)
            setattr(inner, "value", 1)
    """,
}

OLD = {
    "vllm/__init__.py": """
        import typing
        if typing.TYPE_CHECKING:
            from vllm.params import SamplingParams
    """,
    "vllm/params.py": """
        class SamplingParams:
            def __init__(self, n: int = 1): ...
    """,
    "vllm/config/__init__.py": "from vllm.config.vllm import *",
    "vllm/config/vllm.py": """
        from .model import ModelConfig
        class VllmConfig:
            model_config: ModelConfig | None = None
    """,
    "vllm/config/model.py": """
        class ModelConfig:
            layers: int
            @property
            def dtype(self): ...
    """,
    "vllm/helpers.py": """
        def lost(): ...
        def moved(): ...
        def shared(a, *, b=1): ...
    """,
    "vllm/platforms/__init__.py": """
        from .cpu import Platform
        current_platform = Platform()
    """,
    "vllm/platforms/cpu.py": """
        class Platform:
            def is_cpu(self): ...
    """,
    "vllm/worker.py": """
        class Base:
            def run(self, x):
                \"\"\"Words.\"\"\"
                return x
            def other(self): ...
        class Runner(Base):
            def __init__(self):
                self.batch, self.gone_field = 1, 2
        class Fast(Runner): ...
        class Slow(Runner):
            def run(self, x):
                return 0
    """,
    "vllm/replaced.py": """
        def function(): return 1
        def second(): return 1
        class inner:
            value = 0
    """,
}


def tree(files: dict[str, str], folder: Path, **changed: str | None) -> Tree:
    """A wheel of ``files``; ``changed`` by a file's name without folders, None leaves it out."""
    wheel = folder / f"{len(list(folder.iterdir()))}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            text = changed.get(name.removeprefix("vllm/").removesuffix(".py"), text)
            if text is not None:
                lines = text.splitlines()
                indent = min((len(x) - len(x.lstrip()) for x in lines if x.strip()), default=0)
                archive.writestr(name, "\n".join(line[indent:] for line in lines))
    return Tree.of_wheel(wheel)


def difference(folder: Path, **changed: str | None) -> set[tuple[str, str, str]]:
    found = changes(tree(RIVER, folder), tree(OLD, folder), tree(OLD, folder, **changed))
    return {(change.kind, change.name, change.detail) for change in found}


def test_the_same_version_changes_nothing(tmp_path: Path) -> None:
    assert difference(tmp_path) == set()
    assert check_vllm.report([]) == "Nothing that River uses has changed."


def test_a_module_and_names_that_are_gone(tmp_path: Path) -> None:
    changed = {
        "helpers": "from vllm.elsewhere import shared",
        "replaced": None,
        "params": "def moved(): ...",
    }
    files = OLD | {"vllm/elsewhere.py": "def shared(a, *, b=1): ..."}
    found = changes(tree(RIVER, tmp_path), tree(OLD, tmp_path), tree(files, tmp_path, **changed))
    assert {(c.kind, c.name, c.detail) for c in found} == {
        (GONE, "vllm.SamplingParams", ""),
        (GONE, "vllm.helpers.lost", ""),
        (GONE, "vllm.helpers.moved", "now in vllm.params"),
        (GONE, "vllm.replaced", ""),
        (GONE, "vllm.replaced.function", ""),
        (GONE, "vllm.replaced.inner", ""),
        (GONE, "vllm.replaced.inner.value", ""),
        (GONE, "vllm.replaced.second", ""),
    }
    assert {c.where for c in found if "helpers" in c.name} == {("river_vllm.compat",)}


def test_other_arguments_of_functions_and_constructors(tmp_path: Path) -> None:
    helpers = "def lost(): ...\ndef moved(): ...\ndef shared(a: int, *, c=1): ..."
    params = "class SamplingParams:\n def __init__(self, n: str = 1, m=2): ..."
    assert difference(tmp_path, helpers=helpers, params=params) == {
        (ARGUMENTS, "vllm.helpers.shared", "(a, *, b=1) → (a, *, c=1)"),
        (ARGUMENTS, "vllm.SamplingParams", "(self, n=1) → (self, n=1, m=2)"),
    }


def test_fields_of_typed_arguments(tmp_path: Path) -> None:
    changed = {
        "config/model": "class ModelConfig:\n layers: int",
        "platforms/cpu": "class Platform: ...",
    }
    assert difference(tmp_path, **changed) == {
        (GONE, "vllm.config.model.ModelConfig.dtype", ""),
        (GONE, "vllm.platforms.current_platform.is_cpu", ""),
    }


def test_what_river_overrides_or_reads_in_its_subclasses(tmp_path: Path) -> None:
    worker = """
        class Base:
            def run(self, x):
                \"\"\"Other words.\"\"\"
                return x + 1
            def other(self): return "nobody minds"
        class Runner(Base):
            def __init__(self):
                self.batch = 1
        class Fast(Runner): ...
        class Slow(Runner):
            def run(self, x, y=0):
                return 0
    """
    assert difference(tmp_path, worker=worker) == {
        (BODY, "vllm.worker.Runner.run", ""),
        (BODY, "vllm.worker.Fast.run", ""),
        (ARGUMENTS, "vllm.worker.Slow.run", "(self, x) → (self, x, y=0)"),
        *((GONE, f"vllm.worker.{name}.gone_field", "") for name in ("Runner", "Fast", "Slow")),
    }


def test_what_river_replaces(tmp_path: Path) -> None:
    replaced = "def function(): return 2\ndef second(): return 1\nclass inner:\n value = 5"
    assert difference(tmp_path, replaced=replaced) == {
        (BODY, "vllm.replaced.function", ""),
        (BODY, "vllm.replaced.inner.value", ""),
    }
    words = OLD["vllm/replaced.py"].replace("return 1", "'''Words.'''; return 1")
    assert difference(tmp_path, replaced=words) == set()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the installed vLLM, a wheel with nothing in it has lost everything."""
    empty = tmp_path / "vllm-9.9.9-py3-none-any.whl"
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("vllm/__init__.py", "")
    assert check_vllm.main(["9.9.9", "--wheel", str(empty)]) == 1
    text = capsys.readouterr().out
    assert text.startswith("# vllm-9.9.9-py3-none-any.whl beside the installed vLLM\n\n## Gone (")
    assert "- `vllm.v1.worker.gpu_model_runner.GPUModelRunner` (river_vllm.worker.gpu)" in text
    assert check_vllm.main(["9.9.9", "--wheel", str(tmp_path / "none.whl")]) == 2
    assert "none.whl" in capsys.readouterr().err


def test_everything_that_river_imports_is_found_in_the_installed_vllm() -> None:
    """What the tool cannot find there it could not miss in another version either."""
    vllm = Tree.of_folder(installed())
    found = uses(Tree.of_folder(ROOT / "river_vllm", ROOT / "server"), vllm)
    imported = {use.place for use in found if use.member is None}
    assert len(imported) > 50
    assert [place for place in imported if vllm.origin(place) is None] == []
    bodies = {use.name for use in found if use.body}
    assert "vllm.v1.core.sched.scheduler.Scheduler.update_from_output" in bodies
    assert "vllm.v1.worker.cpu_model_runner.CPUModelRunner._model_forward" in bodies
    assert Place("vllm", "LLM") in imported
