"""Passes over known texts through a vLLM engine of this process."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from river_vllm.calibrate.choose import Policy
from river_vllm.calibrate.observer import TEACHER_KEY, Measured, Observer
from river_vllm.request import EXTRA_ARGS_KEY

_salts = itertools.count()


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and its answer, of the backbone or given, as tokens."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def forced(self) -> int:
        """Answer tokens that a decode step would have read: all but the last."""
        return max(0, len(self.answer) - 1)


class TeacherForcedEngine:
    """Answers prompts and runs passes over texts.

    Args:
        llm: vLLM's ``LLM`` with a River model, its engine core in this process.
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._observer: Observer = llm.collective_rpc(Observer)[0]

    def answers(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[Text]:
        """The backbone's greedy answers, at most ``tokens`` long; an end of text counts."""
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0.0,
            max_tokens=tokens,
            detokenize=False,
            extra_args={EXTRA_ARGS_KEY: {"enabled": False}},
        )
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._llm.generate(inputs, params, use_tqdm=False)
        return [
            Text(tuple(prompt), tuple(output.outputs[0].token_ids))
            for prompt, output in zip(prompts, outputs, strict=True)
        ]

    def run(self, policy: Policy | None, texts: Sequence[Text], first: int = 0) -> Measured:
        """One pass over ``texts``.

        Args:
            policy: when tokens leave; None for the backbone's pass, which has to come first.
            first: number of the first text.
        """
        from vllm import SamplingParams

        chosen = policy or Policy.backbone()
        inputs, params = [], []
        for index, text in enumerate(texts):
            # A salt of its own: every row of a measurement has to be computed.
            salt = f"{next(_salts)}"
            tokens = [*text.prompt, *text.answer[: text.forced]]
            inputs.append({"prompt_token_ids": tokens, "cache_salt": salt})
            params.append(
                SamplingParams(
                    temperature=0.0,
                    max_tokens=1,
                    detokenize=False,
                    extra_args={
                        EXTRA_ARGS_KEY: chosen.settings().as_extra_arg(),
                        TEACHER_KEY: {"sequence": first + index, "answer_start": len(text.prompt)},
                    },
                )
            )
        self._observer.begin(reference=policy is None)
        self._llm.generate(inputs, params, use_tqdm=False)
        return self._observer.finish()
