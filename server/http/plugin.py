"""vLLM's endpoint plugin: River's routes and fields on vLLM's own OpenAI app."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from typing import Any

from fastapi import FastAPI
from opentelemetry.trace import get_tracer
from starlette.middleware import Middleware

from river_vllm.compat import init_logger
from river_vllm.config import PLUGIN, river_config_of, serves_river
from river_vllm.request import default_settings
from river_vllm.weights.fingerprint import served_checkpoint
from server.http.auth import RiverGuard
from server.http.console.page import attach_console
from server.http.listen import listen
from server.http.middleware import RiverMiddleware
from server.http.routes import describe_river, router
from server.http.state import RiverState, engine_info, follow
from server.http.summary import announce_when_ready
from server.telemetry.metrics import river_metrics
from server.telemetry.progress import STALL_SECONDS, Progress, ending

logger = init_logger("vllm.river")


class RiverEndpointPlugin:
    """Adds River to vLLM's app, if the engine has a river or ``VLLM_PLUGINS`` names the plugin."""

    name = PLUGIN
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        app.include_router(router)
        attach_console(app)
        # Inside vLLM's count of requests by status, which then sees the final status.
        app.user_middleware.append(Middleware(RiverMiddleware))
        app.add_middleware(RiverGuard)
        describe_river(app)
        announce_when_ready(app)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Make ``state.river`` from the worker's report, and hook the engine client.

        Raises:
            RuntimeError: the model has a river, but its worker does not answer as River's.
        """
        state.river = None
        if engine_client is None:
            return
        vllm_config = engine_client.vllm_config
        if not serves_river(vllm_config):
            logger.warning("River is installed, but this model is served without a river")
            return
        engine = await engine_info(engine_client)
        config = river_config_of(vllm_config)
        state.river = RiverState(
            model=vllm_config.model_config.model,
            config=config,
            engine=engine,
            defaults=default_settings(config),
            metrics=river_metrics(
                int(engine["num_layers"]),
                vllm_config.model_config.served_model_name,
                tuple(engine_client.engine_core.engine_ranks_managed),
            ),
            progress=Progress(getattr(args, "river_stall_seconds", STALL_SECONDS)),
            single_process=vllm_config.parallel_config._api_process_count == 1,
            first_process=vllm_config.parallel_config._api_process_rank <= 0,
            checkpoint=served_checkpoint(vllm_config.model_config),
            ending=ending,
            tracer=get_tracer(PLUGIN) if await engine_client.is_tracing_enabled() else None,
        )
        state.river.set_threshold(state.river.defaults.threshold)
        state.river.update(engine)
        state.river_follower = asyncio.create_task(follow(engine_client, state.river))
        listen(engine_client, state.river)
