"""Marks of a start, and what is kept back while it lasts."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from river_vllm.host import (
    STAGES_FILE,
    WAITING_LOGGER,
    Stage,
    file_named_by,
    is_no_false_alarm,
    mark,
    marks,
    quiet_while_starting,
)


def test_marks_come_back_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    with file_named_by(STAGES_FILE) as file:
        mark(Stage.IMPORT)
        mark(Stage.ENGINE)
        found = marks(file)
    assert [stage for _, stage in found] == [Stage.IMPORT, Stage.ENGINE]
    assert found[0][0] <= found[1][0]
    assert STAGES_FILE not in os.environ
    assert marks(file) == []
    monkeypatch.setenv(STAGES_FILE, "/proc/none/x")
    mark(Stage.ENGINE)


def test_half_a_line_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "marks"
    file.write_text("1.5 engine\n2.5 wei")
    assert marks(file) == [(1.5, Stage.ENGINE)]


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, "", 0, text, (60,), None)


WAIT = "No available shared memory broadcast block found in %d seconds. This typically happens"


def test_a_long_wait_is_an_alarm_only_once_the_server_is_ready() -> None:
    assert is_no_false_alarm(record(WAIT))
    with file_named_by(STAGES_FILE) as file:
        mark(Stage.COMPILE)
        assert not is_no_false_alarm(record(WAIT))
        assert is_no_false_alarm(record("Another message"))
        mark(Stage.READY)
        assert is_no_false_alarm(record(WAIT))
        mark(Stage.QUANTIZE)  # weights that are reloaded
        assert is_no_false_alarm(record(WAIT))
        file.unlink()  # as systemd does with files of /tmp that are ten days old
        assert is_no_false_alarm(record(WAIT))


def test_only_a_server_of_rivers_command_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger(WAITING_LOGGER)
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.delenv(STAGES_FILE, raising=False)
    quiet_while_starting()
    assert logger.filters == []
    with file_named_by(STAGES_FILE):
        quiet_while_starting()
        quiet_while_starting()
    assert len(logger.filters) == 1
