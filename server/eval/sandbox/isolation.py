"""How far programs can be kept apart from the machine here: found out by trying."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass

from river_vllm.errors import RiverError

ALLOW = "RIVER_EVAL_UNISOLATED"
"""Environment variable: "1" lets programs run where nothing keeps them apart."""

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


UNISOLATED = Isolation(
    (),
    network=True,
    note="programs HAVE THE NETWORK, and a process that starts a session of its own outlives its "
    "program; use a container without a network",
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
)
"""Best first."""


def find_isolation(ways: tuple[Isolation, ...] = WAYS) -> Isolation:
    """The first of ``ways`` by which a program runs.

    Raises:
        RiverError: there is none, and nobody has said that programs may run without.
    """
    from server.eval.sandbox.program import PASSED, SandboxError, run_program

    if sys.platform != "linux":
        raise RiverError(f"programs are run on Linux only, this is {sys.platform}")
    for way in ways:
        if shutil.which(way.words[0]) is not None:
            try:
                if run_program("import os", way).result == PASSED:
                    return way
            except SandboxError:
                continue
    if os.environ.get(ALLOW) == "1":
        return UNISOLATED
    raise RiverError(
        "programs of the model cannot be isolated here (unshare and namespaces are needed): "
        "--confirm-run-unsafe-code runs them all the same, with the network; better use a "
        "container or a machine of its own"
    )
