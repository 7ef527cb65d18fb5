"""How far programs can be kept apart from the machine here: found out by trying."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, replace

from river_vllm.errors import RiverError
from server.eval.sandbox.program import Limits, SandboxError, passes

ALLOW = "RIVER_EVAL_UNISOLATED"
"""Environment variable: "1" lets programs run where nothing keeps them apart."""

_APART = ("--net", "--ipc", "--pid", "--fork", "--kill-child")
"""No network but an unconnected loopback; processes end with the first of them."""

_COUNTED = Limits()
_UNCOUNTED = Limits(processes=0)


@dataclass(frozen=True, slots=True)
class Isolation:
    """A way to start a program."""

    words: tuple[str, ...]
    """Stand before its command."""
    limits: Limits = _COUNTED
    note: str = ""
    """What people should know."""


WAYS = (
    Isolation(("unshare", "--user", *_APART, "--mount-proc")),
    Isolation(
        ("unshare", "--user", *_APART),
        note="/proc cannot be mounted anew here: programs see the other processes of this user",
    ),
    Isolation(
        ("unshare", *_APART, "--mount-proc"),
        _UNCOUNTED,
        "user namespaces are not available here: programs run as root",
    ),
)
"""Best first."""

UNISOLATED = Isolation(
    (),
    _UNCOUNTED,
    "programs HAVE THE NETWORK, and a process that starts a session of its own outlives its "
    "program; better use a container without a network",
)


def find_isolation(ways: tuple[Isolation, ...] = WAYS) -> Isolation:
    """The first of ``ways`` by which a program runs.

    Raises:
        RiverError: there is none, and nobody has said that programs may run without.
    """
    if sys.platform != "linux":
        raise RiverError(f"programs are run on Linux only, this is {sys.platform}")
    for way in ways:
        if shutil.which(way.words[0]) is not None:
            try:
                if passes("import os", way.words, way.limits):
                    return _as_root(way) if os.getuid() == 0 else way
            except SandboxError:
                continue
    if os.environ.get(ALLOW) == "1":
        return UNISOLATED
    raise RiverError(
        "programs of the model cannot be isolated here (that takes unshare and namespaces): "
        "--confirm-run-unsafe-code runs them all the same"
    )


def _as_root(way: Isolation) -> Isolation:
    """Linux counts root's processes nowhere, in a namespace of users neither."""
    notes = (way.note, "this is root, whose processes are not counted")
    return replace(way, limits=_UNCOUNTED, note="; ".join(filter(None, notes)))
