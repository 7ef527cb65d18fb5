"""The one summary at start-up."""

from __future__ import annotations

import asyncio
import gc
import logging
from argparse import Namespace

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


def test_it_says_what_is_in_force_and_where() -> None:
    text = summary(river_state(engine=ENGINE), "http://127.0.0.1:8000")
    assert text.splitlines() == [
        "River is ready at http://127.0.0.1:8000",
        "  model      tiny, 12 layers",
        "  river      hqq in groups of 64/128, torch/vllm kernel, made in 1.2 s",
        "  memory     1.5 MiB added",
        "  exits      τ = 0.9, at least 2 layers, prompts: backbone, scope: batch",
        "  crossover  4 bit pays up to 2 rows a step (1: 2.5 ×, 2: 1.3 ×, 4: 0.9 ×); "
        "any number may leave",
        "  calibrated no; 'river-vllm calibrate' chooses τ by what it costs on your prompts",
        "  console    http://127.0.0.1:8000/river/console",
    ]


def test_a_server_that_drafts_has_both() -> None:
    state = river_state(engine=ENGINE, config=RiverConfig(verify=4), defaults=VERIFIED)
    text = summary(state, "unix:/x")
    assert "  verified   up to 4 drafted tokens are checked a step" in text
    assert "scope: step; where a request asks for them" in text


def test_layers_that_left_memory_are_said() -> None:
    text = summary(river_state(engine={**ENGINE, "resident_layers": 4}), "unix:/x")
    assert "1.5 MiB added; bf16 weights of 4 layers stay (16.0 MiB), 8 left" in text


def test_weights_that_were_loaded_are_not_said_to_be_made() -> None:
    weights = {"made": 0, "loaded": 7, "folder": "/cache", "seconds": 0.5}
    text = summary(river_state(engine={**ENGINE, "weights": weights}), "unix:/x")
    assert "torch/vllm kernel, loaded in 0.5 s" in text


def test_a_limit_on_rows_is_said() -> None:
    limited = {**ENGINE, "crossover": {**ENGINE["crossover"], "max_rows": 2}}
    assert "above 2 rows all stay" in summary(river_state(engine=limited), "unix:/x")


def test_what_was_not_measured_is_not_said_to_pay() -> None:
    crossover = {"max_rows": None, "pays_up_to_rows": None, "speedup_by_rows": {}}
    text = summary(river_state(engine={**ENGINE, "crossover": crossover}), "unix:/x")
    assert "  crossover  not measured; any number may leave" in text


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
