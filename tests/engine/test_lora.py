"""LoRA adapters: backbone, drafts and exits all apply the adapter of their request.

A random model with random adapters, one of them on the input embedding and the LM head too. All
places for adapters are taken, and every fourth request has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.lora.request import LoRARequest

from experiments.make_quantized import write_copy
from river_vllm import RiverConfig
from river_vllm.model.forward import Forward
from tests.support import engines
from tests.support.adapters import PROJECTIONS, RANK, Adapted, make_adapter
from tests.support.engines import Generated, generate, generate_alone, greedy
from tests.support.families import (
    DRAFTS,
    EVERY_EXIT,
    GROUP_SIZE,
    LAYERS,
    SAME_RIVER,
    VOCABULARY,
    make_checkpoint,
)
from tests.support.reference import Reference
from tests.support.rounding import (
    Rounding,
    assert_same_answer,
    assert_verified,
    drafted,
    logit_rounding,
    run_alone,
    same_up_to_a_near_tie,
    similarity_rounding,
)

TOKENS = 24
OFF = {"enabled": False}
BLOCK = 32
TARGETS = (PROJECTIONS, ("q_proj", "v_proj"), (*PROJECTIONS, "embed_tokens", "lm_head"))
CONFIG = RiverConfig(**SAME_RIVER, **EVERY_EXIT, **DRAFTS)
OPTIONS: dict[str, Any] = {
    **{"enable_lora": True, "max_loras": len(TARGETS), "max_lora_rank": RANK},
    **{"max_model_len": 256, "block_size": BLOCK, "skip_tokenizer_init": True},
    **{"max_logprobs": 64, "logprobs_mode": "raw_logits"},
}

pytestmark = pytest.mark.engine


@dataclass
class Setup:
    """Stock vLLM and River on one checkpoint, and its adapters; the last of them is none."""

    checkpoint: Path
    stock: Any
    river: Any
    adapters: list[LoRARequest | None]

    def prompts(self, count: int, seed: int = 5) -> list[dict[str, Any]]:
        """Random prompts, each with the next adapter."""
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(5, 40, (count,), generator=generator).tolist()
        return [
            {
                "prompt_token_ids": torch.randint(
                    3, VOCABULARY, (n,), generator=generator
                ).tolist(),
                "adapter": self.adapters[index % len(self.adapters)],
            }
            for index, n in enumerate(lengths)
        ]


@pytest.fixture(scope="session")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("lora")
    checkpoint = make_checkpoint("LlamaForCausalLM", folder / "model")
    adapters: list[LoRARequest | None] = [
        LoRARequest(f"a{i}", i, str(make_adapter(checkpoint, folder / f"a{i}", i, targets)))
        for i, targets in enumerate(TARGETS, 1)
    ]
    river = engines.river_engine(checkpoint, CONFIG, **OPTIONS)
    stock = engines.stock_engine(checkpoint, **OPTIONS)
    return Setup(checkpoint, Adapted(stock), Adapted(river), [*adapters, None])


def test_forty_requests_with_three_adapters_and_none(setup: Setup) -> None:
    """Exact answers are stock's to the token, verified ones up to a near-tie."""
    prompts = setup.prompts(40)
    for engine in (setup.stock, setup.river):
        engine.reset_prefix_cache()
    expected = generate(setup.stock, prompts, greedy(TOKENS, logprobs=2))
    exact = generate(setup.river, prompts, greedy(TOKENS, OFF))
    assert [answer.tokens for answer in exact] == [answer.tokens for answer in expected]
    verified, summary = drafted(setup.river, prompts, greedy(TOKENS))
    for tokens, theirs in zip(verified, expected, strict=True):
        same_up_to_a_near_tie(tokens, theirs)
    assert 0 < summary.accepted < summary.drafted


def test_alone_and_beside_others_a_request_has_its_own_adapter(setup: Setup) -> None:
    """Exact and verified; drafts beside others are as good as alone."""
    prompts = setup.prompts(8, seed=6)
    expected = generate_alone(setup.stock, prompts, greedy(TOKENS, logprobs=2))
    exact = generate_alone(setup.river, prompts, greedy(TOKENS, OFF))
    assert [answer.tokens for answer in exact] == [answer.tokens for answer in expected]
    params = greedy(TOKENS)
    alone, of_alone = drafted(setup.river, prompts, params, together=False)
    beside, of_beside = drafted(setup.river, prompts, params)
    for one, other, theirs in zip(alone, beside, expected, strict=True):
        same_up_to_a_near_tie(one, theirs)
        same_up_to_a_near_tie(other, theirs)
    assert abs(of_beside.accepted - of_alone.accepted) <= 0.1 * of_alone.accepted


def test_a_forced_exit_is_the_reference(setup: Setup) -> None:
    """Logits of each step against transformers' model with the adapter merged into both weights,
    and against the same model without it."""
    prompt = next(p for p in setup.prompts(4) if p["adapter"] is setup.adapters[0])
    adapter = setup.adapters[0]
    assert adapter is not None
    plain = Reference(setup.checkpoint, "rtn", GROUP_SIZE)
    merged = Reference(setup.checkpoint, "rtn", GROUP_SIZE, Path(adapter.lora_path))
    for depth in (1, 2, LAYERS):
        params = greedy(TOKENS, {"threshold": -1.0, "min_layers": depth}, logprobs=64)
        (answer,) = generate(setup.river, [prompt], params)
        assert answer.exit_layers[1:] == [depth] * (TOKENS - 1)
        tokens = prompt["prompt_token_ids"]
        # bf16 against float32, see tests/engine/test_families.py.
        assert merged.error(tokens, answer, depth) < 0.1 < plain.error(tokens, answer, depth)


def test_exits_beside_other_adapters_are_those_alone(setup: Setup) -> None:
    """Tokens and depths, up to a near-tie."""
    prompts, threshold = setup.prompts(8, seed=7), 0.8
    never, params = ({"threshold": t, "min_layers": 1} for t in (0.999999, threshold))
    plain = greedy(TOKENS, logprobs=2)
    by = Rounding(
        logit_rounding(
            generate_alone(setup.stock, prompts, plain), generate(setup.stock, prompts, plain)
        ),
        similarity_rounding(setup.river, prompts, greedy(8, never, logprobs=2), LAYERS),
    )
    exits = greedy(TOKENS, params, logprobs=2)
    alone = [run_alone(setup.river, prompt, exits, LAYERS) for prompt in prompts]
    setup.river.reset_prefix_cache()
    beside = generate(setup.river, prompts, exits)
    same = sum(
        assert_same_answer(one, other, threshold, by)
        for one, other in zip(alone, beside, strict=True)
    )
    assert same > len(prompts) * TOKENS // 2
    assert len({depth for answer in beside for depth in answer.exit_layers[1:]}) > 1


def test_a_4_bit_backbone(setup: Setup, tmp_path: Path) -> None:
    """The adapter comes on top of the checkpoint's own 4-bit weights."""
    write_copy(setup.checkpoint, tmp_path, "w4a16", group_size=GROUP_SIZE, symmetric=False)
    config = RiverConfig(cache_dir="off", group_size=GROUP_SIZE, verify=3, draft="fixed")
    engine = Adapted(engines.river_engine(tmp_path, config, **OPTIONS))
    adapter = setup.adapters[0]
    assert adapter is not None
    merged = Reference(setup.checkpoint, "rtn", GROUP_SIZE, Path(adapter.lora_path))
    prompts = [{**prompt, "adapter": adapter} for prompt in setup.prompts(4)]
    exact = generate_alone(engine, prompts, greedy(TOKENS, OFF, logprobs=64))
    for prompt, answer in zip(prompts, exact, strict=True):
        assert merged.error(prompt["prompt_token_ids"], answer, 0, prompt_exits=True) < 0.1
    assert_verified(engine, prompts, exact)


def ask(engine: Any, text: list[int], adapter: Any, **params: Any) -> tuple[Generated, int]:
    """An answer, and how many of the prompt's tokens came out of the prefix cache."""
    prompt = {"prompt_token_ids": text, "adapter": adapter}
    (output,) = engine.generate([prompt], greedy(**params), use_tqdm=False)
    return engines.generated(output.outputs[0]), output.num_cached_tokens


def test_kv_of_an_adapter_serves_no_other(setup: Setup) -> None:
    """Nor do blocks of an answer that exits, which River salts, serve its own adapter's prompts."""
    generator = torch.Generator().manual_seed(9)
    prompt = torch.randint(3, VOCABULARY, (70,), generator=generator).tolist()
    exits = {"threshold": -1.0, "min_layers": 1}
    first, *others = setup.adapters
    setup.river.reset_prefix_cache()
    setup.stock.reset_prefix_cache()
    answer, hits = ask(setup.river, prompt, first, tokens=80, river=exits)
    assert hits == 0
    longer = [*prompt, *answer.tokens]
    whole, prompts_own = len(longer) // BLOCK * BLOCK, len(prompt) // BLOCK * BLOCK
    for adapter in others:
        for text, settings in ((prompt, OFF), (longer, exits)):
            found, hits = ask(setup.river, text, adapter, tokens=12, river=settings)
            # Blocks of its own first question are found by its second.
            assert hits == (0 if text is prompt else prompts_own)
            if settings is OFF:
                expected, _ = ask(setup.stock, text, adapter, tokens=12)
                assert found.tokens == expected.tokens
    # Its own exits are no part of a prompt either.
    hits = [ask(setup.river, longer, first, tokens=1, river=OFF)[1] for _ in range(2)]
    assert hits == [prompts_own, whole]


def test_drafts_with_the_adapter_are_kept_more_often(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [p for p in setup.prompts(16, seed=8) if p["adapter"] is not None]
    _, adapted = drafted(setup.river, prompts, greedy(TOKENS))

    def bare(self: Any, spans: Any) -> None:
        rows = (0,) * sum(span.rows for span in spans)
        self._runner._set_active_loras(rows, rows, set())

    monkeypatch.setattr(Forward, "_adapt", bare)
    _, without = drafted(setup.river, prompts, greedy(TOKENS))
    shares = [summary.accepted / summary.drafted for summary in (adapted, without)]
    print(f"share of drafts kept with the adapter {shares[0]:.3f}, without it {shares[1]:.3f}")
    assert shares[0] > 1.5 * shares[1]
