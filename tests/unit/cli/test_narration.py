"""What a start says, by a clock of the test's own."""

from __future__ import annotations

import io
import itertools
import socket
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from river_vllm.startup import STAGES_FILE, Stage, file_named_by
from server.cli import narration
from server.cli.narration import EVERY, Narration, Narrator, address, listens
from server.cli.stage_times import STAGES, StageTimes, StartRecord, weight_bytes

LAST = {"import": 10.0, "engine": 20.0, "weights": 5.0, "graph": 4.0, "measure": 6.0, "serve": 5.0}


def test_every_stage_but_the_ends_has_words_and_a_time() -> None:
    assert list(STAGES) == list(Stage)[:-2]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def told(said: list[str]) -> Narration:
    made = Narration(100.0, said.append)
    made.times = StageTimes(LAST)
    return made


def test_a_stage_is_said_when_it_begins_and_every_few_seconds(
    told: Narration, said: list[str]
) -> None:
    marks = [(100.0, Stage.IMPORT)]
    times = [100.0 + 0.25 * tick for tick in range(81)]
    spoken = []
    for now in times:
        before = len(said)
        told.look(marks, now)
        spoken += [now] * (len(said) - before)
    assert spoken == [100.0, 100.0 + EVERY, 100.0 + 2 * EVERY]
    told.look([*marks, (120.1, Stage.ENGINE)], 120.1)
    assert said[-1].startswith("starting vLLM's engine, 20 s so far")


def test_never_ten_seconds_without_a_line_even_if_the_thread_wakes_late(
    told: Narration, said: list[str]
) -> None:
    assert EVERY + narration.POLL + 1.5 < 10


def test_what_is_left_are_the_stages_of_the_last_start(told: Narration, said: list[str]) -> None:
    marks = [(100.0, Stage.IMPORT), (110.0, Stage.ENGINE)]
    told.look(marks, 118.0)
    # 12 s of the engine's 20, then 5, 4, 6 and 5.
    assert said[-1].endswith("18 s so far, about 30 s to go")


def test_what_is_done_once_is_expected_only_when_it_begins(
    told: Narration, said: list[str]
) -> None:
    told.look([(100.0, Stage.IMPORT), (130.0, Stage.GRAPH)], 130.0)
    assert said[-1].endswith("about 15 s to go")
    told.look([(100.0, Stage.IMPORT), (130.0, Stage.GRAPH), (131.0, Stage.COMPILE)], 131.0)
    expected = STAGES[Stage.COMPILE].seconds + 2 * STAGES[Stage.COMPILE].per_gib + 11
    assert said[-1].endswith(f"about {narration._rounded(expected)} to go")


def test_without_a_last_start_the_table_counts_what_is_done_once() -> None:
    small, large = StageTimes({}, 1 << 28), StageTimes({}, 3 << 30)
    assert small.ahead(Stage.COMPILE) == small.of(Stage.COMPILE) > 0
    assert large.remaining(Stage.IMPORT, 0) > small.remaining(Stage.IMPORT, 0)


def test_nothing_is_expected_of_a_compiler_that_nobody_asks() -> None:
    compiled, eager = StageTimes(), StageTimes(compiles=False)
    saved = compiled.remaining(Stage.IMPORT, 0) - eager.remaining(Stage.IMPORT, 0)
    assert saved == sum(map(compiled.of, (Stage.GRAPH, Stage.COMPILE, Stage.COMPILE_RIVER)))


def test_a_stage_that_takes_longer_says_so(told: Narration, said: list[str]) -> None:
    told.look([(100.0, Stage.SERVE)], 100.0)
    told.look([(100.0, Stage.SERVE)], 130.0)
    assert said[-1].endswith("longer than expected")


def test_a_start_that_is_stopped_is_told_no_further(told: Narration, said: list[str]) -> None:
    told.look([(100.0, Stage.ENGINE)], 100.0)
    told.look([(100.0, Stage.ENGINE), (105.0, Stage.STOPPED), (106.0, Stage.WEIGHTS)], 120.0)
    assert len(said) == 1


def test_ranks_that_mark_late_turn_nothing_back(told: Narration, said: list[str]) -> None:
    marks = [(100.0, Stage.WEIGHTS), (105.0, Stage.GRAPH), (105.5, Stage.WEIGHTS)]
    told.look(marks, 106.0)
    told.look(marks, 106.5)
    assert len(said) == 1 and said[0].startswith(STAGES[Stage.GRAPH].words)
    assert told.seconds(110.0) == {"weights": 5.0, "graph": 5.0}


def test_a_record_comes_back_and_keeps_what_a_start_did_without(tmp_path: Path) -> None:
    record = StartRecord(tmp_path, "someone/model")
    assert record.read() == {}
    record.write({"compile": 80.0, "graph": 1.0})
    record.write({"graph": 5.0})
    assert record.read() == {"compile": 80.0, "graph": 5.0}
    assert StartRecord(tmp_path, "someone/other").read() == {}


@pytest.mark.parametrize("text", ["", "[]", '{"nonsense": 1}', '{"graph": "x"}', '{"graph": null}'])
def test_a_record_that_is_damaged_is_none(tmp_path: Path, text: str) -> None:
    record = StartRecord(tmp_path, "m")
    record.write({"graph": 1.0})
    (file,) = (tmp_path / "starts").iterdir()
    file.write_text(text)
    assert record.read() == {}


def test_a_cache_folder_that_refuses_stops_nothing() -> None:
    record = StartRecord(Path("/proc/none"), "m")
    record.write({"graph": 1.0})
    assert record.read() == {}


def test_the_size_of_a_checkpoint(tmp_path: Path) -> None:
    usual = weight_bytes("someone/model")
    assert weight_bytes(str(tmp_path)) == usual
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (tmp_path / name).write_bytes(b"x" * 1000)
    assert weight_bytes(str(tmp_path)) == 2000
    (tmp_path / "model-3.safetensors").symlink_to(tmp_path / "missing")
    assert weight_bytes(str(tmp_path)) == 2000


def args(**changes: Any) -> Namespace:
    values = {"uds": None, "host": "127.0.0.1", "port": 8000, "api_key": [], "enforce_eager": False}
    values |= {"ssl_keyfile": None, "ssl_certfile": None}
    values |= {"headless": False, "api_server_count": None}
    return Namespace(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "host", "expected"),
    [
        ({}, "127.0.0.1", "http://127.0.0.1:8000"),
        ({"port": 81}, "::1", "http://[::1]:81"),
        ({"ssl_keyfile": "k", "ssl_certfile": "c"}, "a.b", "https://a.b:8000"),
        ({"uds": "/run/x"}, "127.0.0.1", "unix:/run/x"),
    ],
)
def test_addresses(changes: dict[str, Any], host: str, expected: str) -> None:
    assert address(args(**changes), host) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [(None, "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.0.0.1", "10.0.0.1")],
)
def test_where_a_client_on_this_machine_finds_it(host: str | None, expected: str) -> None:
    assert narration._reachable(host) == expected


def test_a_socket_that_is_bound_but_does_not_listen_is_not_ready() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        found = args(port=server.getsockname()[1])
        assert not listens(found)
        server.listen()
        assert listens(found)


@pytest.mark.parametrize(("key", "example"), [([], True), (["secret"], False)])
def test_the_last_line_says_that_it_is_ready_and_where(
    tmp_path: Path, key: list[str], example: bool
) -> None:
    stream = io.StringIO()
    with file_named_by(STAGES_FILE) as file, socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        clock = iter(range(1000))
        narrator = Narrator(file, stream, lambda: float(next(clock)))
        record = StartRecord(tmp_path, "m")
        narrator.expect(record, 1 << 28)
        narrator.watch(args(host="0.0.0.0", port=port, api_key=key))
        file.write_text("0.5 import\n1.0 serve\n")
        narrator.start()
        narrator._thread.join(30)
        assert file.read_text().endswith(" ready\n")
    lines = stream.getvalue().splitlines()
    last = lines[-2:] if example else lines[-1:]
    assert last[0].startswith("River: ready after ")
    assert last[0].endswith(f"at http://127.0.0.1:{port}")
    assert ("curl" in lines[-1]) is example
    assert set(record.read()) == {"import", "serve"}


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


def test_a_model_that_is_known_late_is_expected_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIVER_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    narrator = Narrator(tmp_path / "marks", io.StringIO())
    narrator.expect_model(str(tmp_path))
    narrator.expect_model("someone/another")
    assert narrator._narration.times.checkpoint_bytes == 1000
