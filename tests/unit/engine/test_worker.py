"""What River adds to a vLLM worker."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from river_vllm import patches
from river_vllm.engine import worker as module
from river_vllm.engine.worker import RiverWorkerMixin
from river_vllm.errors import RiverError


class FakeWorker:
    """A worker of vLLM's, whose model is there once it has been loaded."""

    def __init__(self, river: dict[str, Any]) -> None:
        self.model_runner: Any = SimpleNamespace()
        self.vllm_config: Any = SimpleNamespace(
            additional_config={"river": river},
            model_config=SimpleNamespace(dtype=torch.bfloat16, hf_config=SimpleNamespace()),
            speculative_config=None,
        )
        self.loaded: list[Any] = []

    def load_model(self) -> None:
        self.loaded.append(getattr(self.model_runner, "drafter", None))


class Worker(RiverWorkerMixin, FakeWorker):
    pass


def test_an_engine_that_verifies_drafts_with_the_river(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own drafter would load a second model, so River's is there before it loads one."""
    monkeypatch.setattr(module, "RiverProposer", lambda *made_with: made_with)
    monkeypatch.setattr(patches, "every_logits_processor_is_there", lambda runner: None)
    worker: Any = Worker({"verify": 4})
    worker.device = "cuda:0"
    worker.vllm_config.speculative_config = object()
    worker.load_model()
    assert worker.loaded == [(worker.vllm_config, "cuda:0", worker.model_runner)]


@pytest.mark.parametrize(("layers", "reloads"), [("all", True), (4, False)])
def test_weights_that_are_read_as_they_are_needed_cannot_be_reloaded(
    layers: Any, reloads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer would mix new layers with old ones."""
    reloaded: list[dict[str, Any]] = []
    monkeypatch.setattr(
        FakeWorker, "reload_weights", lambda self, **how: reloaded.append(how), raising=False
    )
    worker = Worker({"resident_layers": layers, "min_layers": 2})
    worker.vllm_config.model_config.get_total_num_hidden_layers = lambda: 12
    with nullcontext() if reloads else pytest.raises(RiverError, match="restart River"):
        worker.reload_weights(weights_path="new")
    assert reloaded == [{"weights_path": "new"}] * reloads
