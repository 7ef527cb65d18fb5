"""Make a list of the tokens in models' answers, for River's ``modes/verified/token_lists``.

    python experiments/token_lists.py answers MODEL --prompts FILE… --texts FILE [--seconds 400]
    python experiments/token_lists.py list --texts FILE… --output FOLDER/NAME.json

``answers`` appends the model's greedy answers to the prompts of the files, and to prompts of its
own, until ``--seconds`` are over. ``--start`` continues an earlier run. ``list`` counts the tokens
of all answers; models with the same tokenizer share a list.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from river_vllm.modes.verified.token_list import counted
from river_vllm.weights.fingerprint import fingerprint

AT_ONCE = 64


def answers(args: argparse.Namespace) -> None:
    from server.cli.engine import prepare
    from server.cli.prompts import from_files, self_made
    from server.quantize.engine import QuantizingEngine

    began = time.monotonic()
    prepare()
    engine = QuantizingEngine(args.model, None, args.max_model_len, args.kv_cache_gib)
    longest = args.max_model_len - args.answer_tokens - 1
    rows = from_files(args.prompts, engine.llm.get_tokenizer(), longest, 0)
    shared = {"model": args.model, "vocabulary": engine.vocabulary, "always": engine.beside_text}
    count = 0
    with args.texts.open("a", encoding="utf-8") as out:
        for start in range(args.start, len(rows.tokens), AT_ONCE):
            made = self_made(engine.llm, AT_ONCE, 128, start)
            for prompts in (rows.tokens[start : start + AT_ONCE], made.tokens):
                if time.monotonic() - began > args.seconds:
                    print(f"{count} tokens of answers; go on with --start {start}")
                    return
                found = engine.answers(prompts, args.answer_tokens)
                count += sum(map(len, found))
                for prompt, answer in zip(prompts, found, strict=True):
                    line = {**shared, "prompt": prompt, "answer": answer}
                    out.write(json.dumps(line) + "\n")
                out.flush()
    print(f"{count} tokens of answers, no more rows")


def ordinary_counts(files: list[Path], model: Path, vocabulary: int) -> Any:
    """Counts of each token in text files."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    counts = np.zeros(vocabulary, dtype=np.int64)
    for file in files:
        np.add.at(counts, tokenizer.encode(file.read_text(errors="replace")).ids, 1)
    return counts


def make_list(args: argparse.Namespace) -> None:
    lines: list[dict[str, Any]] = [
        json.loads(line) for path in args.texts for line in path.read_text().splitlines()
    ]
    texts = [(line["prompt"], line["answer"]) for line in lines]
    folders = sorted({*(line["model"] for line in lines), *args.also})
    models = [fingerprint(folder) for folder in folders]
    vocabulary = int(lines[0]["vocabulary"])
    ordinary = ordinary_counts(args.ordinary, Path(folders[0]), vocabulary)
    found = counted(texts, vocabulary, lines[0]["always"], models, args.what, ordinary)
    if found is None:
        raise SystemExit("too few answers")
    found.write(args.output)
    print(f"{found.tokens} of {found.vocabulary} tokens, {found.counted}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("answers")
    one.add_argument("model", help="folder of a bf16 checkpoint")
    one.add_argument("--prompts", type=Path, action="append", required=True)
    one.add_argument("--texts", type=Path, required=True, help="file to append to")
    one.add_argument("--seconds", type=float, default=400.0)
    one.add_argument("--answer-tokens", type=int, default=256)
    one.add_argument("--max-model-len", type=int, default=1024)
    one.add_argument("--kv-cache-gib", type=float, default=1.0)
    one.add_argument("--start", type=int, default=0, help="rows that earlier runs have answered")
    one.set_defaults(run=answers)
    other = commands.add_parser("list")
    other.add_argument("--texts", type=Path, action="append", required=True)
    other.add_argument("--what", required=True, help="where the prompts are from, for people")
    other.add_argument(
        "--also",
        action="append",
        default=[],
        help="folder of a checkpoint with the same tokenizer, whose answers were not counted",
    )
    other.add_argument(
        "--ordinary",
        type=Path,
        nargs="*",
        default=[],
        help="text files that rank the tokens without an answer",
    )
    other.add_argument("--output", type=Path, required=True)
    other.set_defaults(run=make_list)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
