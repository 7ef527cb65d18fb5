"""Backbones in 4 bit (compressed-tensors, AWQ, GPTQ): River's product, and drafts on top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.make_quantized import in_groups, write_copy
from river_vllm import RiverConfig
from river_vllm.costs import Costs
from river_vllm.modes.verified import draft
from tests.support import engines
from tests.support.engines import generate, generate_alone, greedy
from tests.support.families import DRAFTS, GROUP_SIZE, make_checkpoint, random_prompts
from tests.support.pool import runner_of
from tests.support.reference import Reference
from tests.support.rounding import assert_verified, drafted

TOKENS = 24
OFF = {"enabled": False}
CONFIG = RiverConfig(cache_dir="off", group_size=GROUP_SIZE, **DRAFTS)
OPTIONS: dict[str, Any] = {
    **{"max_model_len": 128, "skip_tokenizer_init": True},
    **{"max_logprobs": 64, "logprobs_mode": "raw_logits", "kv_cache_memory_bytes": 8 << 20},
}
PROMPTS = random_prompts((5, 9, 40, 17))
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "w4a16", {}),
    "qwen2-symmetric": ("Qwen2ForCausalLM", "w4a16", {"symmetric": True}),
    "phi3-channel": ("Phi3ForCausalLM", "w4a16", {"group_size": -1}),
    "mistral-awq": ("MistralForCausalLM", "awq", {}),
    "qwen3-gptq": ("Qwen3ForCausalLM", "gptq", {}),
    "llama-compiled": ("LlamaForCausalLM", "w4a16", {}),
}

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: Any) -> tuple[Any, Any]:
    """River on a 4-bit checkpoint, and transformers' model with the same weights in float32."""
    name = request.param
    architecture, form, options = CASES[name]
    plain = make_checkpoint(architecture, tmp_path_factory.mktemp(name))
    options = {"group_size": GROUP_SIZE, "symmetric": form == "gptq", **options}
    model: Path = tmp_path_factory.mktemp(f"{name}-4bit")
    write_copy(plain, model, form, **options)
    reference = _in_4_bit(plain, **options)
    eager = not name.endswith("compiled")
    return reference, engines.river_engine(model, CONFIG, **OPTIONS, enforce_eager=eager)


def _in_4_bit(plain: Path, group_size: int, symmetric: bool) -> Reference:
    made = Reference(plain, "rtn", GROUP_SIZE)
    for place, (layer, module, weight, _) in enumerate(made._linears):
        group = weight.shape[1] if group_size == -1 else group_size
        four_bit = in_groups(weight.bfloat16(), group, "rtn", symmetric).dequantize()
        made._linears[place] = layer, module, weight, four_bit
    return made


def test_an_exact_answer_is_of_the_checkpoints_weights(case: tuple[Any, Any]) -> None:
    reference, river = case
    for run in (generate, generate_alone):
        for prompt, answer in zip(
            PROMPTS, run(river, PROMPTS, greedy(TOKENS, OFF, logprobs=64)), strict=True
        ):
            assert len(set(answer.tokens)) > 1
            # bf16 activations against float32 ones, as in tests/engine/test_families.py.
            ids = prompt["prompt_token_ids"]
            assert reference.error(ids, answer, 0, prompt_exits=True) < 0.1


def test_a_verified_answer_is_the_exact_one(case: tuple[Any, Any]) -> None:
    """Up to a near-tie, as rows round differently in attention."""
    _, river = case
    exact = generate_alone(river, PROMPTS, greedy(TOKENS, OFF, logprobs=8))
    assert_verified(river, PROMPTS, exact)


def test_no_weight_is_there_twice(case: tuple[Any, Any]) -> None:
    """The checkpoint's parameters are gone once they are packed, and the river adds a head only."""
    _, river = case
    (info,) = river.collective_rpc("river_info")
    (held,) = river.collective_rpc(_projection_bytes)
    assert held < 1024
    assert info["quantizer"] == "checkpoint"
    assert info["river_bytes"] < info["backbone_bytes"]


def test_no_request_can_exit(case: tuple[Any, Any]) -> None:
    _, river = case
    exact = generate(river, PROMPTS, greedy(TOKENS, OFF))
    (first,) = river.generate([PROMPTS[0]], greedy(TOKENS, {"threshold": 0.5}), use_tqdm=False)
    assert first.outputs[0].token_ids == exact[0].tokens
    (info,) = river.collective_rpc("river_info")
    assert info["crossover"]["max_rows"] == 0
    assert "river" not in info["costs"]


def test_guesses_from_the_text_are_drafted_where_a_draft_costs_a_step(
    case: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, river = case
    runner = runner_of(river)
    costs = Costs.fixed({"draft": {1: 0.1}, "backbone": {1: 0.1, 64: 0.1}})
    monkeypatch.setattr(runner.drafter, "_adaptive", True)
    monkeypatch.setattr(runner, "river_costs", costs)
    exact = generate_alone(river, PROMPTS, greedy(TOKENS, OFF))
    texts = [
        [*prompt["prompt_token_ids"], *answer.tokens]
        for prompt, answer in zip(PROMPTS, exact, strict=True)
    ]

    def told(text: Any, most: int) -> draft.Guess:
        """Two tokens that the backbone will make, and a wrong one."""
        known = text.tolist()
        found = next((t[len(known) :] for t in texts if t[: len(known)] == known), [])
        return draft.Guess([*found[:2], 0][:most], 2)

    monkeypatch.setattr(draft, "continuation", told)
    _, summary = drafted(river, PROMPTS, greedy(TOKENS), together=False)
    assert 0 < summary.accepted < summary.drafted
    assert summary.steps < summary.tokens


def _projection_bytes(worker: Any) -> int:
    from vllm.model_executor.layers.linear import LinearBase

    model = worker.model_runner.get_model()
    return sum(
        parameter.nbytes
        for module in model.modules()
        if isinstance(module, LinearBase)
        for name, parameter in module.named_parameters(recurse=False)
        if name != "bias"
    )
