"""The Dockerfile and what GitHub runs: what an operator relies on, read from the files."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path

import pytest

from tests.deploy.dockerfile import exec_form, read
from tests.deploy.files import ROOT, load

FILE = read(ROOT / "Dockerfile")
SERVERS = ("cpu", "cuda")
IMAGES = (*SERVERS, "client")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = {path.stem: path for path in (ROOT / ".github" / "workflows").glob("*.yml")}
DIGEST = re.compile(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}")


def test_bases_are_stages_or_pinned_by_tag_and_digest() -> None:
    bases = [stage.base for stage in FILE.stages.values()]
    outside = [base for base in bases if base not in FILE.stages and base != "scratch"]
    assert outside
    assert all(DIGEST.fullmatch(base) for base in outside), outside
    first = (ROOT / "Dockerfile").read_text().splitlines()[0]
    assert DIGEST.fullmatch(first.removeprefix("# syntax=")), first


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
def test_starts_without_a_shell_and_its_health_check_needs_no_tool(image: str) -> None:
    stage = FILE.stages[image]
    commands = [stage.last("ENTRYPOINT")]
    if image in SERVERS:
        commands.append(stage.last("HEALTHCHECK").partition(" CMD ")[2])
    folder, target = stage.last("COPY").split()
    for program, script in map(exec_form, commands):
        assert program == "python"
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
    text = (ROOT / "Dockerfile").read_text()
    named = re.findall(r"--extras (\S+)", text) + re.findall(r"\.\[([\w,]+)\]", text)
    extras = {extra for group in named for extra in group.split(",")}
    assert {"cpu", "cuda"} <= extras <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("path", WORKFLOWS.values(), ids=WORKFLOWS)
def test_workflows_pin_actions_by_hash_and_have_no_more_rights_than_they_need(path: Path) -> None:
    used = re.findall(r"uses: (.+)", path.read_text(encoding="utf-8"))
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]
        for step in job["steps"]:
            if "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False


def test_the_pythons_that_are_named_are_tested_and_every_image_is_released() -> None:
    named = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert named == load(WORKFLOWS["ci"])["jobs"]["check"]["strategy"]["matrix"]["python"]
    targets = load(WORKFLOWS["release"])["jobs"]["images"]["strategy"]["matrix"]["target"]
    assert set(IMAGES) == set(targets)
