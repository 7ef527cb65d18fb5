"""What a start says, by a clock of the test's own."""

from __future__ import annotations

import io
import itertools
import socket
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from river_vllm.host import STAGES_FILE, Stage, file_named_by
from server.cli.narration import EVERY, STAGES, Narrator, _reachable, address, listens


class Told(Narrator):
    """Keeps its lines; the command began at 100 s."""

    def __init__(self) -> None:
        super().__init__(Path("none"), io.StringIO(), lambda: 100.0)

    @property
    def lines(self) -> list[str]:
        text: str = self._stream.getvalue()  # type: ignore[attr-defined]
        return [line.removeprefix("River: ") for line in text.splitlines()]


def test_a_stage_is_said_when_it_begins_and_every_few_seconds() -> None:
    told, marks = Told(), [(100.0, Stage.IMPORT)]
    spoken = []
    for now in (100.0 + 0.25 * tick for tick in range(81)):
        before = len(told.lines)
        told.look(marks, now)
        spoken += [now] * (len(told.lines) - before)
    assert spoken == [100.0, 100.0 + EVERY, 100.0 + 2 * EVERY]
    told.look([*marks, (120.1, Stage.ENGINE)], 120.1)
    assert told.lines[-1] == f"{STAGES[Stage.ENGINE]}, 20 s so far"


def test_a_start_that_is_stopped_is_told_no_further() -> None:
    told = Told()
    told.look([(100.0, Stage.ENGINE)], 100.0)
    told.look([(100.0, Stage.ENGINE), (105.0, Stage.STOPPED), (106.0, Stage.WEIGHTS)], 120.0)
    assert len(told.lines) == 1


def test_ranks_that_mark_late_turn_nothing_back() -> None:
    told = Told()
    marks = [(100.0, Stage.WEIGHTS), (105.0, Stage.GRAPH), (105.5, Stage.WEIGHTS)]
    told.look(marks, 106.0)
    told.look(marks, 106.5)
    (line,) = told.lines
    assert line.startswith(STAGES[Stage.GRAPH])


def args(**changes: Any) -> Namespace:
    values = {"uds": None, "host": "127.0.0.1", "port": 8000, "api_key": []}
    values |= {"ssl_keyfile": None, "ssl_certfile": None}
    values |= {"headless": False, "api_server_count": None}
    return Namespace(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "host", "expected"),
    [
        ({}, None, "http://127.0.0.1:8000"),
        ({}, "0.0.0.0", "http://127.0.0.1:8000"),
        ({"port": 81}, "::", "http://[::1]:81"),
        ({"ssl_keyfile": "k", "ssl_certfile": "c"}, "10.0.0.1", "https://10.0.0.1:8000"),
        ({"uds": "/run/x"}, "127.0.0.1", "unix:/run/x"),
    ],
)
def test_where_a_client_on_this_machine_finds_it(
    changes: dict[str, Any], host: str | None, expected: str
) -> None:
    assert address(args(**changes), _reachable(host)) == expected


def test_a_socket_that_is_bound_but_does_not_listen_is_not_ready() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        found = args(port=server.getsockname()[1])
        assert not listens(found)
        server.listen()
        assert listens(found)


def finished(file: Path, step: float, **changes: Any) -> list[str]:
    """Lines of a start that has come to its server, by a clock that goes on by ``step``."""
    stream = io.StringIO()
    clock = itertools.count(0.0, step)
    narrator = Narrator(file, stream, lambda: next(clock))
    narrator.watch(args(**changes))
    file.write_text("0.5 import\n1.0 serve\n")
    narrator.start()
    narrator._thread.join(30)
    assert not narrator._thread.is_alive()
    assert file.read_text().endswith(" ready\n")
    return stream.getvalue().splitlines()


@pytest.mark.parametrize(("key", "example"), [([], True), (["secret"], False)])
def test_the_last_line_says_that_it_is_ready_and_where(key: list[str], example: bool) -> None:
    with file_named_by(STAGES_FILE) as file, socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        lines = finished(file, 1.0, host="0.0.0.0", port=port, api_key=key)
    ready = lines[-2 if example else -1]
    assert "ready after" in ready and ready.endswith(f"http://127.0.0.1:{port}")
    assert ("curl" in lines[-1]) is example


@pytest.mark.parametrize("changes", [{"headless": True}, {"api_server_count": 0}])
def test_engines_without_a_server_are_ready_when_they_are_loaded(changes: dict[str, Any]) -> None:
    with file_named_by(STAGES_FILE) as file:
        lines = finished(file, 1.0, **changes)
    assert lines[-1].startswith("River: engine ready after ")
    assert not any("http" in line for line in lines[1:])


def test_a_server_that_is_not_reached_is_not_waited_for_without_end() -> None:
    """It listens on an address that this machine has no way to."""
    with file_named_by(STAGES_FILE) as file, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        lines = finished(file, 15.0, port=taken.getsockname()[1])
    assert lines and not any("ready after" in line for line in lines)
