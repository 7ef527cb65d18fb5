"""What River adds to a vLLM worker."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from river_vllm.engine.worker import RiverWorkerMixin
from river_vllm.errors import RiverError


class FakeWorker:
    """What the mixin uses of a worker of vLLM's."""

    def __init__(self, river: dict[str, Any]) -> None:
        model_config = SimpleNamespace(
            hf_config=SimpleNamespace(), get_total_num_hidden_layers=lambda: 12
        )
        self.vllm_config: Any = SimpleNamespace(
            additional_config={"river": river}, model_config=model_config
        )
        self.reloaded: list[dict[str, Any]] = []

    def reload_weights(self, **how: Any) -> None:
        self.reloaded.append(how)


class Worker(RiverWorkerMixin, FakeWorker):
    pass


@pytest.mark.parametrize(("layers", "reloads"), [("all", True), (4, False)])
def test_weights_that_are_read_as_they_are_needed_cannot_be_reloaded(
    layers: Any, reloads: bool
) -> None:
    """An answer would mix new layers with old ones."""
    worker = Worker({"resident_layers": layers, "min_layers": 2})
    with nullcontext() if reloads else pytest.raises(RiverError, match="restart River"):
        worker.reload_weights(weights_path="new")
    assert worker.reloaded == [{"weights_path": "new"}] * reloads
