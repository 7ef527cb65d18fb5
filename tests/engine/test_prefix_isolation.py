"""Approximate K/V stays with the requests that allow it; exact prompt blocks stay shared by all.

Conversations of two turns, whose first answer exits early and fills several blocks; the reference
is stock vLLM with the same prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.support.engines import greedy
from tests.support.forms import form

pytestmark = pytest.mark.engine

BLOCK = 32
ANSWER = 80
OFF = {"enabled": False}
NEVER = {"threshold": 1.0}
LAX = {"threshold": -1.0, "min_layers": 1}
STRICT = {"threshold": 0.97}
KINDS = ("stock", "river")
TOPICS = ["the sea", "bread", "the moon"]


def _first_turn(engine: Any, topic: str) -> list[int]:
    messages = [
        {"role": "system", "content": "You are a patient teacher. " * 6},
        {"role": "user", "content": f"Tell me everything about {topic}."},
    ]
    text = engine.get_tokenizer().apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    return list(engine.get_tokenizer().encode(text))


def _follow_up(engine: Any, conversation: Sequence[int], question: str = "Shorter!") -> list[int]:
    """The second turn, built from tokens: what was generated is in it as it was generated."""
    end = f"<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return [*conversation, *engine.get_tokenizer().encode(end)]


def _ask(engine: Any, prompt: list[int], settings: Any, tokens: int = ANSWER) -> tuple[list, int]:
    """The answer's tokens, and how many of the prompt's came out of the prefix cache."""
    (output,) = engine.generate(
        [{"prompt_token_ids": prompt}], greedy(tokens, settings), use_tqdm=False
    )
    return list(output.outputs[0].token_ids), output.num_cached_tokens


def _whole(tokens: int) -> int:
    """Tokens in full blocks; vLLM computes the last token again in any case."""
    return (tokens - 1) // BLOCK * BLOCK


@pytest.fixture(params=form(short=["qwen2", "int8"], long=["qwen2", "int8", "smollm2"]))
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Stock vLLM and River, their caches empty."""
    engines = tuple(request.getfixturevalue(f"{kind}_{request.param}") for kind in KINDS)
    for engine in engines:
        engine.reset_prefix_cache()
    return engines


@pytest.fixture
def river(river_qwen2: Any) -> Iterator[Any]:
    river_qwen2.reset_prefix_cache()
    yield river_qwen2
    river_qwen2.reset_prefix_cache()


def test_an_exact_turn_reads_nothing_that_the_river_wrote(pair: tuple[Any, Any]) -> None:
    stock, river = pair
    prompt = _first_turn(river, TOPICS[0])
    answer, _ = _ask(river, prompt, LAX)
    conversation = prompt + answer
    assert _whole(len(conversation)) >= _whole(len(prompt)) + 2 * BLOCK
    _ask(stock, prompt, None, 1)
    for exact, question in ((OFF, "Shorter!"), (NEVER, "Longer!")):
        follow_up = _follow_up(river, conversation, question)
        expected, stock_hits = _ask(stock, follow_up, None, 24)
        found, hits = _ask(river, follow_up, exact, 24)
        assert hits == stock_hits
        assert found == expected
        # The first of them finds the prompt and not the answer; the second one finds what the
        # first has computed.
        assert hits >= _whole(len(prompt) + 1)
        assert (hits < _whole(len(conversation))) is (exact is OFF)
    for settings in (OFF, NEVER, STRICT, LAX):
        assert _ask(river, follow_up, settings, 1)[1] == _whole(len(follow_up))


def test_nobody_elses_prompt_is_approximate(river: Any) -> None:
    """Prompts run on the backbone: not even the same settings read an answer's own blocks."""
    prompt = _first_turn(river, TOPICS[1])
    answer, _ = _ask(river, prompt, LAX)
    _, hits = _ask(river, _follow_up(river, prompt + answer), LAX, 1)
    assert hits == _whole(len(prompt) + 1)


def test_an_exact_answer_is_shared_with_everyone(stock_qwen2: Any, river: Any) -> None:
    stock_qwen2.reset_prefix_cache()
    prompt = _first_turn(river, TOPICS[2])
    answer, _ = _ask(river, prompt, OFF)
    assert answer == _ask(stock_qwen2, prompt, None)[0]
    for question, settings in enumerate((OFF, NEVER, STRICT, LAX)):
        follow_up = _follow_up(river, prompt + answer, f"{question}!")
        hits = _ask(river, follow_up, settings, 1)[1]
        assert hits == _ask(stock_qwen2, follow_up, None, 1)[1]
        assert hits >= _whole(len(prompt)) + 2 * BLOCK
