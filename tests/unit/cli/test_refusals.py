"""An address that cannot be had is one line that names its option."""

from __future__ import annotations

import errno
import os
import socket
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from server.cli.serve import refusal


def said(error: OSError, port: int = 8000, uds: str | None = None) -> str | None:
    return refusal(error, Namespace(host="127.0.0.1", port=port, uds=uds), Path("none"))


def made(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def error_of(bind: Callable[[], None]) -> OSError:
    with pytest.raises(OSError) as found:
        bind()
    return found.value


def test_a_socket_that_is_there_or_cannot_be_made(tmp_path: Path) -> None:
    there, nowhere = str(tmp_path / "river.sock"), str(tmp_path / "none" / "river.sock")
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.bind(there)
        for path in (there, nowhere):
            line = said(error_of(lambda path=path: second.bind(path)), uds=path)
            assert f"--uds '{path}'" in (line or "")
    assert f"--uds '{there}'" in (said(made(errno.EACCES), uds=there) or "")


def test_a_port_in_use_and_one_that_is_not_allowed() -> None:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        address = first.getsockname()
        line = said(error_of(lambda: second.bind(address)), address[1])
    assert f"127.0.0.1:{address[1]} is in use" in (line or "")
    assert "above 1023" in (said(made(errno.EACCES), 80) or "")
    assert said(made(errno.EACCES), 8000) is None


@pytest.mark.parametrize("host", ["no.such.name.invalid", "203.0.113.9"])
def test_an_address_of_no_interface(host: str) -> None:
    with socket.socket() as unbound:
        error = error_of(lambda: unbound.bind((host, 0)))
    line = refusal(error, Namespace(host=host, port=8000, uds=None), Path("none"))
    assert f"--host '{host}'" in (line or "")


@pytest.mark.parametrize("uds", [None, "/run/river.sock"])
def test_the_error_of_a_file_is_none_of_the_addresss(uds: str | None) -> None:
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/etc/river/key.pem")
    assert said(denied, 80, uds) is None
