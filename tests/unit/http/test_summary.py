"""The one summary at start-up."""

from __future__ import annotations

import asyncio
import gc
import logging
from argparse import Namespace
from typing import Any

import pytest
from fastapi import FastAPI
from vllm.entrypoints.launchers.utils.server_utils import lifespan

from river_vllm.config import RiverConfig
from server.http.summary import announce_when_ready, summary
from tests.unit.http.support import VERIFIED, L, river_state

ENGINE = {
    "num_layers": L,
    "quantizer": "hqq",
    "group_sizes": [64, 128],
    "kernels": ["torch", "vllm"],
    "river_bytes": 3 << 19,
    "resident_layers": L,
    "backbone_bytes": 1 << 24,
    "weights": {"made": 7, "loaded": 0, "folder": None, "seconds": 1.25},
    "crossover": {
        "max_rows": None,
        "pays_up_to_rows": 2,
        "speedup_by_rows": {"1": 2.5, "2": 1.3, "4": 0.9},
    },
}


LIMITED = {"max_rows": 2, "pays_up_to_rows": None, "speedup_by_rows": {}}
LOADED = {"made": 0, "loaded": 7, "folder": "/cache", "seconds": 0.5}


@pytest.mark.parametrize(
    ("engine", "drafts", "words"),
    [
        ({}, False, ["http://x:8000/river/console", "made in 1.2 s", "1.5 MiB added", "2 rows"]),
        ({}, True, ["up to 4 drafted tokens", "τ = 0.9"]),
        ({"resident_layers": 4}, False, ["4 layers stay (16.0 MiB)", "8 left"]),
        ({"weights": LOADED, "crossover": LIMITED}, False, ["loaded in 0.5 s", "above 2 rows"]),
        ({"crossover": {**LIMITED, "max_rows": None}}, False, ["not measured", "any number"]),
    ],
)
def test_it_says_what_is_in_force(engine: dict[str, Any], drafts: bool, words: list[str]) -> None:
    drafting = {"config": RiverConfig(verify=4), "defaults": VERIFIED} if drafts else {}
    text = summary(river_state(engine={**ENGINE, **engine}, **drafting), "http://x:8000")
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    ("host", "first", "ready"),
    [("::1", True, ["http://[::1]:81"]), (None, True, ["http://0.0.0.0:81"]), (None, False, [])],
)
def test_it_is_logged_once_when_the_app_has_started(
    host: str | None,
    first: bool,
    ready: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from server.http import summary as module

    monkeypatch.setattr(module, "logger", logging.getLogger("river-test"))
    caplog.set_level(logging.INFO, "river-test")
    app = FastAPI()
    announce_when_ready(app)
    app.state.river = river_state(engine=ENGINE, first_process=first)
    app.state.args = Namespace(uds=None, host=host, port=81, ssl_keyfile=None, ssl_certfile=None)

    async def start() -> None:
        async with app.router.lifespan_context(app):
            found = [record.getMessage().splitlines()[0] for record in caplog.records]
            assert found == [f"River is ready at {where}" for where in ready]

    asyncio.run(start())


def test_the_heap_that_vllm_freezes_is_let_go_when_the_app_ends() -> None:
    """nanobind's modules report each object that is left at the exit."""
    app = FastAPI(lifespan=lifespan)
    announce_when_ready(app)
    app.state.log_stats = False

    async def start() -> None:
        async with app.router.lifespan_context(app):
            assert gc.get_freeze_count()

    asyncio.run(start())
    assert not gc.get_freeze_count()
