"""Errors of ``serve`` with a known cure, in one line; others keep their traceback."""

from __future__ import annotations

import errno
import socket
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from river_vllm.errors import RiverError

ENGINE_FAILED = "Engine core initialization failed"
"""vLLM's message when an engine process ended at its start."""


def refusal(error: Exception, args: Namespace, left: Path) -> str | None:
    """The line for ``error``; None if its traceback should be shown.

    Args:
        error: the exception of vLLM's start-up.
        args: the server's arguments.
        left: the file to which a worker writes its reason.
    """
    for cause in _causes(error):
        if isinstance(cause, RiverError):
            return str(cause)
    if ENGINE_FAILED in str(error):
        reason = left.read_text(encoding="utf-8").strip()
        return reason or "the engine did not start; its own error stands above"
    if isinstance(error, ValidationError):
        return "; ".join(
            _one_line(item["msg"].removeprefix("Value error, ")) for item in error.errors()
        )
    if isinstance(error, OSError) and error.filename is None:
        return _address(error, args)
    return None


def _address(error: OSError, args: Namespace) -> str | None:
    """The line for a socket that cannot be bound; its error, unlike a file's, has no name."""
    if args.uds:
        if error.errno == errno.EADDRINUSE:
            return (
                f"--uds '{args.uds}' is there already: choose another, or remove it where no "
                "server uses it"
            )
        if error.errno in (errno.EACCES, errno.ENOENT, errno.ENOTDIR, errno.EROFS):
            return f"--uds '{args.uds}': {error.strerror}"
        return None
    where = f"{args.host}:{args.port}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use by another program; choose another with --port"
    if error.errno == errno.EACCES and args.port < 1024:
        return f"{where} is not allowed for this user; choose a --port above 1023"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"--host '{args.host}': {error.strerror}; give an address of this machine"
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, the errors that pydantic wrapped in it, and its causes."""
    seen: list[BaseException] = [error]
    while seen:
        current = seen.pop()
        yield current
        details: Any = getattr(current, "errors", None)
        if callable(details):
            wrapped = [item.get("ctx", {}).get("error") for item in details()]
            seen.extend(e for e in wrapped if isinstance(e, BaseException))
        seen.extend(e for e in (current.__cause__,) if e is not None)
