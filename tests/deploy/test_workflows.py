"""What GitHub runs: actions pinned, and the Pythons that the package names."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.deploy.dockerfile import read
from tests.deploy.files import ROOT, load

WORKFLOWS = {path.stem: path for path in (ROOT / ".github" / "workflows").glob("*.yml")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("path", WORKFLOWS.values(), ids=WORKFLOWS)
def test_actions_are_pinned_by_hash_and_name_their_version(path) -> None:
    used = re.findall(r"uses: (.+)", path.read_text(encoding="utf-8"))
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


@pytest.mark.parametrize("path", WORKFLOWS.values(), ids=WORKFLOWS)
def test_workflows_have_no_more_rights_than_they_need(path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]
        for step in job["steps"]:
            if "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False


def test_the_pythons_that_the_package_names_are_tested() -> None:
    named = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert named == load(WORKFLOWS["ci"])["jobs"]["check"]["strategy"]["matrix"]["python"]


def test_every_image_is_released() -> None:
    targets = load(WORKFLOWS["release"])["jobs"]["images"]["strategy"]["matrix"]["target"]
    stages = read(ROOT / "Dockerfile").stages
    assert {name for name, stage in stages.items() if stage.all("ENTRYPOINT")} == set(targets)


def test_images_are_tried_at_every_change() -> None:
    steps = load(WORKFLOWS["ci"])["jobs"]["images"]["steps"]
    assert {"run": "make images"} in steps
