"""make_secrets.py: what it writes is what the server, the client and Prometheus read."""

from __future__ import annotations

import stat
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from server.cli.endpoint import read_key
from server.cli.options import api_keys, metrics_keys
from tests.deploy.files import DEPLOY, compose
from tests.deploy.programs import run


def make_secrets(folder: Path) -> str:
    return run(sys.executable, "-I", DEPLOY / "make_secrets.py", "--folder", folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_secrets(tmp_path / "secrets")
    return tmp_path / "secrets"


def test_every_secret_of_compose_is_written_once_for_its_owner(folder: Path) -> None:
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert before.keys() == {Path(one["file"]).name for one in compose()["secrets"].values()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "written" not in make_secrets(folder)
    assert before == {path.name: path.read_text() for path in folder.iterdir()}


def test_server_accepts_the_keys_of_clients_and_of_prometheus(folder: Path) -> None:
    args = Namespace(
        api_key=None,
        api_key_file=str(folder / "api_keys"),
        metrics_key_file=str(folder / "metrics_key"),
    )
    args.api_key = api_keys(args)
    assert args.api_key == [read_key(None, folder / "client_key")]
    assert all(len(key) >= 43 for key in args.api_key + metrics_keys(args))


def test_keys_of_ones_own_are_lines_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "client_key").write_text("without-an-end")
    assert "warning" not in make_secrets(folder)
    assert (folder / "api_keys").read_text().split()[0] == "without-an-end"
    (folder / "client_key").unlink()
    assert "warning: api_keys" in make_secrets(folder)
    with (folder / "api_keys").open("a") as keys:
        keys.write((folder / "metrics_key").read_text())
    assert "metrics key" in make_secrets(folder)
