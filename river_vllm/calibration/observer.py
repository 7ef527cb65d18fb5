"""The worker's side of a measurement: compares a pass with the backbone's, row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from river_vllm.calibration.divergence import LikelyTokens, compare, likely_tokens
from river_vllm.calibration.kv import KvRecord, Token
from river_vllm.calibration.teacher import TeacherForced
from river_vllm.criterion import CRITERION
from river_vllm.registration import river_config_of
from river_vllm.river import Forward, River
from river_vllm.router import Router
from river_vllm.step import StepTable

LOGIT_ROWS = 256
"""Rows whose logits over the vocabulary exist at one time."""


@dataclass(slots=True)
class Measured:
    """What a pass gave, one entry per teacher-forced token in the order of computation.

    Attributes:
        tokens: text and position of each, int32 ``[tokens, 2]``.
        exit_layer: backbone layers that it ran, int16.
        agrees: whether its likeliest next token is the backbone's.
        kl: KL(backbone ‖ this pass) in nats, float32.
        similarity: of the backbone's pass: s after 1 … L−1 layers, float32 ``[tokens, L − 1]``.
        keys, values: cosine with the backbone's K and V, float32 ``[tokens, layers]``, if asked.
    """

    tokens: npt.NDArray[np.int32]
    exit_layer: npt.NDArray[np.int16]
    agrees: npt.NDArray[np.bool_]
    kl: npt.NDArray[np.float32]
    similarity: npt.NDArray[np.float32] | None = None
    keys: npt.NDArray[np.float32] | None = None
    values: npt.NDArray[np.float32] | None = None


@dataclass(slots=True)
class _Pass:
    reference: bool
    kv: bool
    tokens: list[Token] = field(default_factory=list)
    exit_layer: list[int] = field(default_factory=list)
    agrees: list[torch.Tensor] = field(default_factory=list)
    kl: list[torch.Tensor] = field(default_factory=list)
    similarity: list[list[torch.Tensor]] = field(default_factory=list)
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)


class Observer:
    """Looks at the steps of a worker from outside; one for all passes over a set of texts.

    Args:
        worker: vLLM's worker, whose model has a river; its mode becomes ``TeacherForced``.
    """

    def __init__(self, worker: Any) -> None:
        runner = worker.model_runner
        self._model = runner.get_model()
        self._river: River = self._model.river
        self._config = river_config_of(worker.vllm_config)
        self._mode = runner.river_steps = TeacherForced(runner, self._config)
        self._router = self._river.router
        self._kv = KvRecord(worker)
        self._likely: dict[Token, LikelyTokens] = {}
        self._pass: _Pass | None = None
        self._river.run = self._run

    def begin(self, reference: bool, kv: bool = False) -> None:
        """Start a pass; the first over a text has to be the backbone's (``reference``)."""
        self._pass = _Pass(reference, kv)
        if reference:
            self._river.router = WatchedRouter(self._router, self.watch)

    def watch(self, layers_run: int, before: torch.Tensor, after: torch.Tensor) -> None:
        """States of the backbone's pass, ``[rows, hidden]``, before and after layer l."""
        if self._pass is None:
            return
        if layers_run == 1:
            self._pass.similarity.append([])
        self._pass.similarity[-1].append(CRITERION(before, after))

    def _run(self, table: StepTable, forward: Forward) -> torch.Tensor:
        hidden = River.run(self._river, table, forward)
        current, found = self._pass, self._mode.forced_tokens()
        if current is None or not found:
            return hidden
        groups, tokens = map(list, zip(*found, strict=True))
        rows = torch.tensor((np.cumsum(table.rows) - table.rows)[groups], device=hidden.device)
        current.tokens += tokens
        current.exit_layer += table.exit_layer[groups].tolist()
        head, table.head = table.head, "backbone"
        if not current.reference and self._config.lm_head == "river":
            table.head = "river"
        for start in range(0, len(tokens), LOGIT_ROWS):
            span = slice(start, start + LOGIT_ROWS)
            self._logits(current, tokens[span], self._model.compute_logits(hidden[rows[span]]))
        table.head = head
        if current.kv:
            self._read_kv(current, tokens, rows)
        return hidden

    def finish(self) -> Measured:
        """The pass that was begun."""
        done, self._pass = self._pass, None
        self._river.router = self._router
        if done is None:
            raise RuntimeError("no pass was begun")
        return Measured(
            tokens=np.array(done.tokens, dtype=np.int32).reshape(-1, 2),
            exit_layer=np.array(done.exit_layer, dtype=np.int16),
            agrees=_joined(done.agrees, torch.bool),
            kl=_joined(done.kl, torch.float32),
            similarity=_stacked(done.similarity) if done.reference else None,
            keys=_joined(done.keys, torch.float32) if done.keys else None,
            values=_joined(done.values, torch.float32) if done.values else None,
        )

    def _logits(self, current: _Pass, tokens: list[Token], logits: torch.Tensor) -> None:
        if current.reference:
            self._likely.update(zip(tokens, likely_tokens(logits), strict=True))
        agrees, kl = compare([self._likely[token] for token in tokens], logits)
        current.agrees.append(agrees)
        current.kl.append(kl)

    def _read_kv(self, current: _Pass, tokens: list[Token], rows: torch.Tensor) -> None:
        if current.reference:
            self._kv.keep(tokens, rows)
            return
        keys, values = self._kv.similarity(tokens, rows)
        current.keys.append(keys)
        current.values.append(values)


class WatchedRouter(Router):
    """Decides as ``inner`` and shows each layer's states to ``watch``."""

    def __init__(
        self, inner: Router, watch: Callable[[int, torch.Tensor, torch.Tensor], None]
    ) -> None:
        vars(self).update(vars(inner))
        self._watch = watch

    def decide(
        self,
        table: StepTable,
        layers_run: int,
        hidden: torch.Tensor,
        residual: torch.Tensor | None,
    ) -> None:
        before = table.states
        super().decide(table, layers_run, hidden, residual)
        if before is not None and table.states is not None and table.states is not before:
            self._watch(layers_run, before, table.states)


def _joined(parts: list[torch.Tensor], dtype: torch.dtype) -> Any:
    return torch.cat(parts).to(dtype).cpu().numpy() if parts else np.empty(0)


def _stacked(steps: list[list[torch.Tensor]]) -> npt.NDArray[np.float32] | None:
    if not steps:
        return None
    found: npt.NDArray[np.float32] = (
        torch.cat([torch.stack(step, dim=1) for step in steps]).float().cpu().numpy()
    )
    return found


def attach(worker: Any) -> None:
    """RPC within a process: get ready for teacher-forced passes (``passes.py``)."""
    worker.river_observer = Observer(worker)


def begin(worker: Any, reference: bool, kv: bool) -> None:
    """RPC within a process: start a pass."""
    worker.river_observer.begin(reference, kv)


def finish(worker: Any) -> Measured:
    """RPC within a process: the pass that was begun."""
    measured: Measured = worker.river_observer.finish()
    return measured
