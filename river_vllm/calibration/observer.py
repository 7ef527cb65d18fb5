"""The worker's side of a measurement: compares a pass with the backbone's, row by row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from river_vllm.calibration.divergence import LikelyTokens, compare, likely_tokens
from river_vllm.calibration.kv import KvRecord, Token
from river_vllm.router.batch import StepBatch

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
    """Set as ``River.observer``; lives through all passes over one set of texts.

    Args:
        worker: vLLM's worker, whose model has a river.
    """

    def __init__(self, worker: Any) -> None:
        self._model = worker.model_runner.get_model()
        self._river = self._model.river
        self._kv = KvRecord(worker)
        self._likely: dict[Token, LikelyTokens] = {}
        self._pass: _Pass | None = None

    def begin(self, reference: bool, kv: bool = False) -> None:
        """Start a pass; the first over a text has to be the backbone's (``reference``)."""
        self._pass = _Pass(reference, kv)
        self._river.router.probe = self._probe if reference else None

    def step(self, batch: StepBatch, hidden: torch.Tensor) -> None:
        """Called after each routed forward pass."""
        current = self._pass
        units = [u for u in batch.units if u.token is not None]
        if current is None or not units:
            return
        keep = [index for index, u in enumerate(batch.units) if u.token is not None]
        tokens = [u.token for u in units if u.token is not None]
        rows = torch.tensor([u.start for u in units], device=hidden.device)
        current.tokens += tokens
        current.exit_layer += batch.exit_layer[keep].tolist()
        for start in range(0, len(tokens), LOGIT_ROWS):
            span = slice(start, start + LOGIT_ROWS)
            self._logits(current, tokens[span], self._compute(hidden[rows[span]], current))
        if current.kv:
            self._read_kv(current, tokens, rows)

    def finish(self) -> Measured:
        """The pass that was begun."""
        done, self._pass = self._pass, None
        self._river.router.probe = None
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

    def _compute(self, hidden: torch.Tensor, current: _Pass) -> torch.Tensor:
        plan = self._river.plan
        plan.river_head = not current.reference and self._river.config.lm_head == "river"
        try:
            logits: torch.Tensor = self._model.compute_logits(hidden)
        finally:
            plan.river_head = False
        return logits

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

    def _probe(self, layers_run: int, before: torch.Tensor, after: torch.Tensor) -> None:
        if self._pass is None:
            return
        if layers_run == 1:
            self._pass.similarity.append([])
        self._pass.similarity[-1].append(self._river.router.signal(before, after))


def _joined(parts: list[torch.Tensor], dtype: torch.dtype) -> Any:
    return torch.cat(parts).to(dtype).cpu().numpy() if parts else np.empty(0)


def _stacked(steps: list[list[torch.Tensor]]) -> npt.NDArray[np.float32] | None:
    if not steps:
        return None
    found: npt.NDArray[np.float32] = (
        torch.cat([torch.stack(step, dim=1) for step in steps]).float().cpu().numpy()
    )
    return found
