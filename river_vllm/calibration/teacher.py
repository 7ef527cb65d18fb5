"""Exits over known texts, whose answers stand in the prompt."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from river_vllm.calibration.kv import Token
from river_vllm.step import Product, StepTable
from river_vllm.worker.steps import Request, Steps

TEACHER_KEY = "river_teacher"
"""Key in ``SamplingParams.extra_args`` for the number of a text and where its answer starts."""


@dataclass(slots=True)
class ForcedRequest(Request):
    """A request that is a known text."""

    sequence: int = -1
    """The text's number."""


class SplitTable(StepTable):
    """A table of thousands of rows, which need not have stock vLLM's bits: where the step is on
    both paths, each product runs over its own rows."""

    __slots__ = ()

    def mixed(self, x: torch.Tensor, backbone: Product, river: Product) -> torch.Tensor:
        flat = x.flatten(0, -2)
        stay = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
        stay[self.river_rows] = False
        kept = backbone(flat[stay])
        out = kept.new_empty(len(flat), kept.shape[1])
        out[stay] = kept
        out[self.river_rows] = river(flat[self.river_rows])
        return out


class TeacherForced(Steps):
    """Treats the answer at the end of a prompt as if it had been generated."""

    _table_class = SplitTable

    def forced_tokens(self) -> list[tuple[int, Token]]:
        """Groups of the step that are tokens of a text, each with its text and position."""
        return [
            (group, (request.sequence, line.position))
            for group, line in enumerate(self._lines)
            if isinstance(request := self._step[line.request], ForcedRequest)
            and line.position >= request.prompt
            and request.settings.may_exit
            and not line.replayed
        ]

    def _first_met(self, state: Any) -> Request:
        request = super()._first_met(state)
        teacher = (state.sampling_params.extra_args or {}).get(TEACHER_KEY)
        if teacher is None:
            return request
        known = {field.name: getattr(request, field.name) for field in fields(request)}
        known["prompt"] = min(request.prompt, teacher["answer_start"])
        return ForcedRequest(**known, sequence=teacher["sequence"])
