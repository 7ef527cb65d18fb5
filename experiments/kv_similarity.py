"""How close the river's K and V are to the backbone's, per layer, read from the paged blocks.

The river answers prompts greedily with a forced exit; then the backbone reads the same text, and
the K/V of the answer's tokens are compared slot by slot (cosine over all heads).

    python experiments/kv_similarity.py MODEL --data FILE.jsonl --field question
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from vllm import LLM, SamplingParams

from river_vllm import RiverConfig, engine_args
from river_vllm.calibration import kv

QUANTIZERS = ("rtn", "hqq")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True, help="JSONL file of texts")
    parser.add_argument("--field", default="question", help="field that holds the text")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--exit-layers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.data.read_text().splitlines()[: args.prompts]]
    texts = [row[args.field] for row in rows]
    results = []
    print("| quantiser | exit layer | K mean | K worst layer | V mean | V worst layer | tokens |")
    print("|---|---|---|---|---|---|---|")
    for quantizer in QUANTIZERS:
        engine = _engine(args, quantizer)
        for exit_layer in args.exit_layers:
            k, v, tokens = _compare(engine, texts, exit_layer, args.tokens)
            results.append(
                {
                    "quantizer": quantizer,
                    "exit_layer": exit_layer,
                    "k": k.tolist(),
                    "v": v.tolist(),
                    "tokens": tokens,
                }
            )
            river = slice(exit_layer, None)
            print(
                f"| {quantizer} | {exit_layer} | {k[river].mean():.4f} | {k[river].min():.4f} "
                f"| {v[river].mean():.4f} | {v[river].min():.4f} | {tokens} |",
                flush=True,
            )
        del engine
    if args.json:
        args.json.write_text(json.dumps({"model": args.model, "results": results}, indent=1))


def _engine(args: argparse.Namespace, quantizer: str) -> LLM:
    config = RiverConfig.model_validate({"quantizer": quantizer, "group_size": args.group_size})
    options = engine_args(
        args.model, config, max_model_len=1024, kv_cache_memory_bytes=1 << 30, block_size=32
    )
    return LLM(args.model, **options)


def _compare(
    engine: LLM, texts: list[str], exit_layer: int, tokens: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Mean cosine per layer of K and of V, and the tokens that they are over."""
    tokenizer = engine.get_tokenizer()
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        for text in texts
    ]
    prompts = [tokenizer.encode(chat, add_special_tokens=False) for chat in chats]
    river = {"threshold": -1.0, "min_layers": exit_layer}
    ours = _run(engine, prompts, tokens, river)
    read = [entry["tokens"][: entry["written"]] for entry in ours]
    theirs = _run(engine, read, 1, {"enabled": False})
    cosines: dict[str, list[torch.Tensor]] = {"k": [], "v": []}
    for prompt, a, b in zip(prompts, ours, theirs, strict=True):
        span = slice(len(prompt), a["written"])
        for half, found in cosines.items():
            x, y = a[half][:, span].flatten(2), b[half][:, span].flatten(2)
            found.append(torch.nn.functional.cosine_similarity(x, y, dim=-1))
    k, v = (torch.cat(found, dim=1) for found in cosines.values())
    return k.mean(dim=1), v.mean(dim=1), k.shape[1]


def _run(
    engine: LLM, prompts: list[list[int]], tokens: int, river: dict[str, Any]
) -> list[dict[str, Any]]:
    """Generate ``tokens`` for each prompt and read its K/V while the request is alive."""
    engine.reset_prefix_cache()
    llm = engine.llm_engine
    scheduler = llm.engine_core.engine_core.scheduler
    params = SamplingParams(
        temperature=0, max_tokens=tokens + 1, ignore_eos=True, extra_args={"river": river}
    )
    names = [f"kv-{index:03d}" for index in range(len(prompts))]
    for name, prompt in zip(names, prompts, strict=True):
        llm.add_request(name, {"prompt_token_ids": prompt}, params)
    while any(r.num_output_tokens < tokens for r in scheduler.requests.values()):
        llm.step()
    found = []
    for request in sorted(scheduler.requests.values(), key=lambda r: r.request_id):
        (blocks,) = scheduler.kv_cache_manager.get_block_ids(request.request_id)
        k, v = engine.collective_rpc(kv.read, args=(list(blocks),))[0]
        found.append(
            {
                "tokens": list(request.all_token_ids),
                "written": request.num_tokens - 1,
                "k": k,
                "v": v,
            }
        )
    llm.abort_request(names)
    while llm.has_unfinished_requests():
        llm.step()
    return found


if __name__ == "__main__":
    main()
