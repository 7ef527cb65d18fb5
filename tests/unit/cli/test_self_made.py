"""Prompts that the model makes up, for ``quantize`` and for ``calibrate``."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from river_vllm.errors import RiverError
from server.calibrate.command import _prompts
from server.cli.main import build_parser
from server.cli.output import Steps
from server.quantize.command import find_prompts
from tests.unit.calibrate_command.test_prompts import Tokenizer


class Chat(Tokenizer):
    """With a system prompt of its own, as some templates have it."""

    all_special_ids = (1,)

    def __init__(self, system: str) -> None:
        self._system = system

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        return self._system + super().apply_chat_template(messages, **options)


class Llm:
    """Writes sevens, as many as it may."""

    def __init__(self, system: str = "") -> None:
        self.get_tokenizer = lambda: Chat(system)

    def generate(
        self, inputs: Sequence[object], params: Sequence[Any], use_tqdm: bool
    ) -> list[SimpleNamespace]:
        self.seeds = [each.seed for each in params]
        answers = [SimpleNamespace(token_ids=[7] * each.max_tokens) for each in params]
        return [SimpleNamespace(outputs=[answer]) for answer in answers]


def options(command: str, *arguments: str) -> Any:
    return build_parser().parse_args([command, "model", *arguments]).options


def test_a_calibration_gets_others_than_the_weights_were_made_with() -> None:
    seeds = []
    for seed in ("0", "1"):
        made, tested = Llm(), Llm()
        find_prompts(options("quantize", "--seed", seed), made, Steps(False))
        _prompts(options("calibrate", "--seed", seed), tested, 64, Steps(False))
        seeds += [*made.seeds, *tested.seeds]
    assert len(set(seeds)) == len(seeds) > 100


def test_as_many_as_the_text_takes() -> None:
    assert len(find_prompts(options("quantize"), Llm(), Steps(False)).tokens) == 8192 // 128


def test_a_long_system_prompt_leaves_the_message_its_length() -> None:
    found = find_prompts(options("quantize"), Llm("s" * 200), Steps(False))
    assert {tokens.count(7) for tokens in found.tokens} == {64}


def test_a_system_prompt_that_leaves_no_room_is_named() -> None:
    with pytest.raises(RiverError, match="10"):
        find_prompts(options("quantize"), Llm("s" * 1000), Steps(False))
    with pytest.raises(RiverError, match="--max-model-len"):
        _prompts(options("calibrate"), Llm("s" * 1000), 64, Steps(False))
