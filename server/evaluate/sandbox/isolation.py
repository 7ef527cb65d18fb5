"""How far programs can be kept apart from the machine here: found out by trying."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass

from server.bench.errors import BenchError
from server.evaluate.sandbox.limits import Limits
from server.evaluate.sandbox.program import PASSED, SandboxError, run_program

_APART = ("--net", "--ipc", "--pid", "--fork", "--kill-child")
"""No network but an unconnected loopback; processes end with the first of them."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """A way to start a program."""

    words: tuple[str, ...]
    """Stand before the command."""
    network: bool = False
    """Whether programs can reach the network."""
    counts_processes: bool = False
    """Whether a limit on processes counts the program's alone, not all of the user's."""
    note: str = ""
    """What people should know."""


_NO_NAMESPACES = (
    "namespaces are not available here (unshare): programs HAVE THE NETWORK, and a process that "
    "starts a session of its own outlives its program; use a container without a network"
)

WAYS = (
    Isolation(("unshare", "--user", *_APART, "--mount-proc"), counts_processes=True),
    Isolation(
        ("unshare", "--user", *_APART),
        counts_processes=True,
        note="/proc cannot be mounted anew here: programs see the other processes of this user",
    ),
    Isolation(
        ("unshare", *_APART, "--mount-proc"),
        note="user namespaces are not available here: programs run as root",
    ),
    Isolation((), network=True, note=_NO_NAMESPACES),
)
"""Best first."""

_PROBE = "import os"


async def find_isolation(ways: tuple[Isolation, ...] = WAYS) -> Isolation:
    """The first of ``ways`` by which a program runs.

    Raises:
        BenchError: there is none.
    """
    if sys.platform != "linux":
        raise BenchError(f"humaneval: programs are run on Linux only, this is {sys.platform}")
    reason = "there is no way"
    for way in ways:
        if way.words and shutil.which(way.words[0]) is None:
            continue
        try:
            ran = await run_program(_PROBE, Limits(), way)
        except SandboxError as error:
            reason = str(error)
            continue
        if ran.result == PASSED:
            return way
        reason = f"{ran.result} {ran.detail}".strip()
    raise BenchError(f"humaneval: programs cannot be run here: {reason}")
