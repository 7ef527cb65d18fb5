"""The paper's own rules: sequence-level prefill and the minimum over the batch; and RTN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from river_vllm import RiverConfig
from tests.support import engines
from tests.support.engines import generate, greedy
from tests.support.pool import few_blocks, requests_of, scheduler_of
from tests.support.prompts import PROMPTS
from tests.support.reference import Reference

pytestmark = pytest.mark.engine


@pytest.fixture(scope="session")
def paper(tiny_qwen2: Path) -> Any:
    config = RiverConfig(
        threshold=0.5,
        scope="batch",
        prefill="sequence",
        quantizer="rtn",
        group_size=32,
        max_rows="all",
    )
    return engines.river_engine(tiny_qwen2, config, max_logprobs=64, logprobs_mode="raw_logits")


def test_prompts_exit_as_a_whole(paper: Any, tiny_qwen2: Path) -> None:
    """Prompt and answer after two layers: logits are the reference's, from the first token on."""
    prompt = paper.get_tokenizer().encode(PROMPTS[4])
    settings = {"threshold": -1.0, "min_layers": 2}
    (answer,) = generate(paper, [{"prompt_token_ids": prompt}], greedy(16, settings, logprobs=64))
    assert answer.exit_layers == [2] * 16
    # bf16 against float32, see tests/engine/test_river.py.
    assert Reference(tiny_qwen2, "rtn", 32).error(prompt, answer, 2, prompt_exits=True) < 0.05


def test_batch_scope_leaves_together(paper: Any) -> None:
    """All tokens of a step have one depth: the deepest that any of them needs alone."""
    prompts = PROMPTS[:4]
    settings = {"threshold": 0.75}
    together = generate(paper, prompts, greedy(12, settings))
    for step in range(1, 12):
        assert len({answer.exit_layers[step] for answer in together}) == 1
    floor = [greedy(12, {"threshold": -1.0, "min_layers": layers}) for layers in (1, 2, 5, 3)]
    for answer in generate(paper, prompts, floor):
        assert answer.exit_layers[1:] == [5] * 11


def test_a_preempted_prompt_leaves_where_it_left(
    paper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its similarities may fall otherwise the second time: other chunks, other neighbours."""
    requests = requests_of(paper)
    first: dict[str, Any] = {}
    last: dict[str, Any] = {}
    forget = requests.forget

    def remember(request_ids: Any) -> None:
        last.update({i: _depths(requests, i) for i in request_ids if _leaves(requests, i)})
        forget(request_ids)

    monkeypatch.setattr(requests, "forget", remember)
    with few_blocks(paper, 7, token_budget=24) as preempted:
        scheduler = scheduler_of(paper)
        preempt = scheduler._preempt_request

        def look(request: Any, *args: Any, **kwargs: Any) -> Any:
            first.setdefault(request.request_id, _depths(requests, request.request_id))
            return preempt(request, *args, **kwargs)

        scheduler._preempt_request = look
        params = [greedy(60, {"threshold": threshold}) for threshold in (0.75, 0.6, 0.7, 0.5)]
        generate(paper, PROMPTS[8:12], params)
    generate(paper, PROMPTS[:1], greedy(1))  # what has ended is forgotten with the next step
    assert preempted
    for request_id in set(preempted):
        ran = first[request_id] > 0
        assert ran.any()
        assert (last[request_id][ran] == first[request_id][ran]).all()
    assert any((depths[depths > 0] < 6).any() for depths in first.values())


def test_prompts_that_exit_are_shared_by_the_same_settings_only(paper: Any) -> None:
    prompt = {"prompt_token_ids": list(range(200, 300))}
    lax, strict = {"threshold": -1.0, "min_layers": 2}, {"threshold": 0.9}
    paper.reset_prefix_cache()

    def hits(settings: dict[str, Any]) -> int:
        (output,) = paper.generate([prompt], greedy(1, settings), use_tqdm=False)
        cached: int = output.num_cached_tokens
        return cached

    assert hits(lax) == 0
    assert hits(lax) == 96
    assert hits(strict) == 0
    assert hits({"enabled": False}) == 0
    assert hits({"threshold": 1.0}) == 96, "exact prompts are shared with each other"
    assert hits({**lax, "min_layers": 3}) == 0


def _depths(requests: Any, request_id: str) -> Any:
    """Of the request's prompt tokens."""
    return requests._known[request_id].prompt_depths.copy()


def _leaves(requests: Any, request_id: str) -> bool:
    """Whether its prompt may."""
    request = requests._known.get(request_id)
    return request is not None and request.prompt_depths is not None
