"""The Dockerfile and what GitHub runs, read from the files.

That images build, start without a shell and can write where they must is in test_images.py.
"""

from __future__ import annotations

import re

from tests.deploy.files import ROOT

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
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
    assert len(users) == len(starts) == 3
    assert all(int(number) > 0 for user in users for number in user)
    assert all(start.startswith('["python", ') for start in starts)


def test_actions_of_workflows_are_pinned_by_hash() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for action in re.findall(r"uses: (.+)", path.read_text(encoding="utf-8")):
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
