"""make_secrets.py: what it writes is what the server, the client and Prometheus read."""

from __future__ import annotations

import stat
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from server.cli.endpoint import read_key
from server.cli.options import api_keys, metrics_keys
from tests.deploy.files import DEPLOY, compose


def make_secrets(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-I", str(DEPLOY / "make_secrets.py"), "--folder", str(folder)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_secrets(tmp_path / "secrets")
    return tmp_path / "secrets"


def named_secrets() -> set[str]:
    return {Path(secret["file"]).name for secret in compose()["secrets"].values()}


def test_writes_every_secret_of_compose(folder: Path) -> None:
    assert named_secrets() == {path.name for path in folder.iterdir()}


def test_server_accepts_the_keys_of_clients_and_of_prometheus(folder: Path) -> None:
    args = Namespace(
        api_key=None,
        api_key_file=str(folder / "api_keys"),
        metrics_key_file=str(folder / "metrics_key"),
    )
    args.api_key = api_keys(args)
    assert args.api_key == [read_key(None, folder / "client_key")]
    assert all(len(key) >= 43 for key in args.api_key + metrics_keys(args))


def test_other_users_are_kept_out_by_the_folder(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}


def test_a_second_run_keeps_what_is_there(folder: Path) -> None:
    before = {path.name: path.read_text() for path in folder.iterdir()}
    output = make_secrets(folder)
    assert before == {path.name: path.read_text() for path in folder.iterdir()}
    assert "written" not in output


def test_secrets_are_ignored_by_git_and_by_the_build() -> None:
    assert "secrets/" in (DEPLOY / ".gitignore").read_text().splitlines()
    kept = (DEPLOY.parent / ".dockerignore").read_text().split("\n")
    assert not any(line in ("!deploy", "!deploy/", "!deploy/secrets") for line in kept)


def test_keys_of_ones_own_are_lines_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "client_key").write_text("without-an-end")
    assert "warning" not in make_secrets(folder)
    assert (folder / "api_keys").read_text().split()[0] == "without-an-end"
    (folder / "client_key").unlink()
    assert "warning: api_keys, which was kept, lacks" in make_secrets(folder)
    with (folder / "api_keys").open("a") as keys:
        keys.write((folder / "metrics_key").read_text())
    assert "warning: api_keys holds the metrics key" in make_secrets(folder)
