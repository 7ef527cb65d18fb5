"""The Dockerfile and what GitHub runs: what an operator relies on, read from the files.

That images build, start without a shell and can write where they must is in test_images.py.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.deploy.files import ROOT, load

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = {path.stem: path for path in (ROOT / ".github" / "workflows").glob("*.yml")}
IMAGES = ("cpu", "cuda", "client")
DIGEST = r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}"


def test_bases_are_stages_or_pinned_by_tag_and_digest() -> None:
    assert re.match(rf"# syntax={DIGEST}\n", TEXT)
    pinned = re.findall(rf"^ARG (\w+)={DIGEST}$", TEXT, re.MULTILINE)
    assert pinned
    stages = {"scratch", *(f"${{{name}}}" for name in pinned)}
    for base, name in re.findall(r"^FROM (\S+) AS (\S+)$", TEXT, re.MULTILINE):
        assert base in stages, base
        stages.add(name)


def test_images_run_as_a_fixed_user_that_is_not_root_and_without_a_shell() -> None:
    users = re.findall(r"^USER (\d+):(\d+)$", TEXT, re.MULTILINE)
    starts = re.findall(r"^ENTRYPOINT (.*)$", TEXT, re.MULTILINE)
    assert len(users) == len(starts) == len(IMAGES)
    assert all(int(number) > 0 for user in users for number in user)
    assert all(start.startswith('["python", ') for start in starts)


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
