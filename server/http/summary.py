"""Logs a summary for the operator when the server is ready, as one record."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI

from river_vllm.compat import init_logger
from server.cli.narration import address
from server.http.console.page import PATH
from server.http.state import RiverState

logger = init_logger("vllm.river")


def announce_when_ready(app: FastAPI) -> None:
    """Log the summary after the app's start-up, which is vLLM's last step before it listens."""
    original = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        inner: AbstractAsyncContextManager[Any] = original(app)
        async with inner as state:
            river: RiverState | None = getattr(app.state, "river", None)
            if river is not None and river.first_process:
                args = app.state.args
                # The address as vLLM writes it (``entrypoints/launchers/launcher.py``).
                logger.info("%s", summary(river, address(args, args.host or "0.0.0.0")))
            yield state
        # vLLM freezes the heap at the start. The exit would not free it, and Triton would report
        # its objects as leaked.
        gc.unfreeze()

    app.router.lifespan_context = lifespan


def summary(river: RiverState, where: str) -> str:
    """Model, layers, quantiser, kernel, crossover, memory added, address."""
    engine = river.engine
    groups = "/".join(map(str, engine["group_sizes"]))
    kernels = "/".join(engine["kernels"])
    weights = engine["weights"]
    done = "made" if weights["made"] else "loaded"
    rows = {
        "model": f"{river.model}, {river.num_layers} layers",
        "river": f"{engine['quantizer']} in groups of {groups}, {kernels} kernel, "
        f"{done} in {weights['seconds']:.1f} s",
        "memory": _memory(engine),
        **({"verified": _drafts(river)} if river.config.drafts else {}),
        "exits": _exits(river),
        "crossover": _crossover(engine["crossover"]),
        "calibrated": _calibration(river.describe()["calibration"]),
        "console": where + PATH if where.startswith("http") else PATH,
    }
    lines = [f"  {name:<11}{text}" for name, text in rows.items()]
    return "\n".join([f"River is ready at {where}", *lines])


def _drafts(river: RiverState) -> str:
    return (
        f"up to {river.config.drafts} drafted tokens are checked a step, answers are the "
        "backbone's own; where a request says nothing"
    )


def _exits(river: RiverState) -> str:
    defaults, config = river.defaults, river.config
    least = f"{defaults.min_layers} layer{'s' if defaults.min_layers > 1 else ''}"
    whose = "; where a request asks for them" if config.drafts else ""
    return (
        f"τ = {defaults.threshold}, at least {least}, prompts: {config.prefill}, "
        f"scope: {config.scope}{whose}"
    )


def _memory(engine: dict[str, Any]) -> str:
    added = f"{engine['river_bytes'] / 2**20:.1f} MiB added"
    resident, layers = engine["resident_layers"], engine["num_layers"]
    if resident >= layers:
        return added
    kept = engine["backbone_bytes"] / 2**20
    gone = layers - resident
    return f"{added}; bf16 weights of {resident} layers stay ({kept:.1f} MiB), {gone} left"


def _crossover(crossover: dict[str, Any]) -> str:
    speedups = ", ".join(
        f"{rows}: {times} ×" for rows, times in crossover["speedup_by_rows"].items()
    )
    limit = crossover["max_rows"]
    held = "any number may leave" if limit is None else f"above {limit} rows all stay"
    if not speedups:
        return f"not measured; {held}"
    return f"4 bit pays up to {crossover['pays_up_to_rows']} rows a step ({speedups}); {held}"


def _calibration(calibration: dict[str, Any] | None) -> str:
    if calibration is None:
        return "no; 'river-vllm calibrate' chooses τ by what it costs on your prompts"
    if calibration["in_force"]:
        return str(calibration["guarantee"])
    return f"not in force: {'; '.join(calibration['not_in_force_because'])}"
