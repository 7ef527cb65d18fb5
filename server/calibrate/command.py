"""Runs ``river-vllm calibrate``: engine, prompts, calibration, files."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from river_vllm.calibrate.certify import prompts_needed
from river_vllm.calibrate.passes import Policy, TeacherForcedEngine, Text
from river_vllm.calibrate.run import Calibrator, Outcome
from river_vllm.config import RiverConfig, combined, load_config_file
from river_vllm.errors import RiverError
from river_vllm.weights.cache import weights_folder
from river_vllm.weights.fingerprint import fingerprint, served_checkpoint
from server.calibrate.options import CalibrateOptions
from server.calibrate.report import (
    Circumstances,
    WeightBytes,
    as_json,
    as_yaml,
    describe,
    guarantee,
    print_outcome,
    river_config,
    target,
)
from server.cli.engine import prepare, start
from server.cli.output import Steps, make_console, write_json, write_text
from server.cli.prompts import Prompts, from_files, self_made


def calibrate(options: CalibrateOptions) -> int:
    """Calibrate, or check; the exit status."""
    config = _config(options)
    began = time.monotonic()
    prepare()
    llm = start(options.model, config, options.engine)
    _check_layers(options, config, llm)
    with Steps(not options.files.no_progress) as steps:
        outcome, made = _measure(options, llm, config, steps)
    return _report(options, outcome, made, time.monotonic() - began)


def _config(options: CalibrateOptions) -> RiverConfig:
    """The settings of ``--check`` or ``--river-config``, overridden by the command line."""
    check = options.target.check
    path = check or options.engine.river_config
    data: dict[str, Any] = {} if path is None else load_config_file(path)
    if check is None:
        data.pop("calibration", None)
    config = combined(
        {
            "defaults": {"scope": "token"},
            str(path): data,
            "command line": options.engine.river,
            # Verified answers are the backbone's own: there is nothing to choose or to draft.
            "calibrate": {"verify": 0},
        }
    )
    if config.scope != "token" or config.prefill != "backbone":
        raise RiverError(
            f"calibrate: scope = '{config.scope}', prefill = '{config.prefill}': can be measured "
            "with scope 'token' and prefill 'backbone' only"
        )
    if config.ends_early:
        raise RiverError(
            f"calibrate: resident_layers = {config.resident_layers!r}: the backbone to compare "
            "with would end there too; leave it out, or set deep = 'fetch'"
        )
    return config


def _check_layers(options: CalibrateOptions, config: RiverConfig, llm: Any) -> None:
    check = options.target.check
    layers = int(llm.collective_rpc("river_info")[0]["num_layers"])
    if layers < 2:
        raise RiverError("calibrate: the model has one decoder layer, so no token can leave early")
    if check is not None and (config.threshold >= 1.0 or config.min_layers >= layers):
        raise RiverError(f"--check '{check}': with these settings no token leaves early")


def _measure(
    options: CalibrateOptions, llm: Any, config: RiverConfig, steps: Steps
) -> tuple[Outcome, Circumstances]:
    from vllm import __version__ as vllm_version

    text, asked = options.text, options.target
    engine = TeacherForcedEngine(llm)
    calibrator = Calibrator(engine, steps.step, steps.done)
    pilot = 0 if asked.check is not None else text.pilot_prompts
    prompts = _prompts(options, llm, pilot, steps)
    folder = weights_folder(config, options.model)
    seen = None if folder is None else seen_by_weights(folder, prompts, text.half)
    if seen is not None:
        print(f"note: {seen}", file=sys.stderr)
    if prompts.answers is None:
        texts = calibrator.answer(prompts.tokens, text.tokens)
    else:
        pairs = zip(prompts.tokens, prompts.answers, strict=True)
        texts = [Text(tuple(prompt), tuple(answer[: text.tokens])) for prompt, answer in pairs]
    usable = sum(answered.forced > 0 for answered in texts)
    _for_test(usable, pilot, "prompts whose answer has more than one token")
    if asked.check is None:
        outcome = calibrator.calibrate(texts, pilot, asked.target_agreement, asked.delta)
    else:
        policy = Policy(config.threshold, config.min_layers)
        outcome = calibrator.check(policy, texts, asked.target_agreement, asked.delta)
    model_config = llm.llm_engine.model_config
    engine = llm.collective_rpc("river_info")[0]
    ranks = llm.llm_engine.vllm_config.parallel_config.tensor_parallel_size
    head = 2 * model_config.get_vocab_size() * model_config.get_hidden_size() / ranks
    # Rows of the test exit on their own similarity; the file must set the same.
    config = config.merged({"scope": "token", "max_rows": "all"}, "calibrate")
    made = Circumstances(
        model=served_checkpoint(model_config),
        river=None if folder is None else fingerprint(str(folder)),
        config=config,
        prompts=prompts,
        longest=options.longest_prompt,
        tokens=text.tokens,
        engine=engine,
        weights=WeightBytes.of(engine, head, min(engine["group_sizes"])),
        vllm=vllm_version,
        command=["river-vllm", *sys.argv[1:]],
    )
    return outcome, made


def _prompts(options: CalibrateOptions, llm: Any, pilot: int, steps: Steps) -> Prompts:
    text, asked = options.text, options.target
    needed = prompts_needed(1.0 - asked.target_agreement, 0.5, asked.delta)
    wanted = text.test_prompts or needed
    longest = options.longest_prompt
    if text.prompts:
        tokenizer = llm.get_tokenizer()
        found = from_files(text.prompts, tokenizer, longest, text.seed, text.half, text.answers)
    else:
        # Even seeds: 'quantize' uses the odd ones.
        written = steps.requests("prompts written")
        found = self_made(llm, pilot + wanted, longest, 2 * text.seed, written)
    if asked.check is not None and text.prompts and text.test_prompts is None:
        wanted = len(found.tokens)
    found = found.head(pilot + wanted)
    available = _for_test(len(found.tokens), pilot, "prompts")
    if available < needed:
        print(
            f"note: {available} prompts are left for the test; to show a loss of half the limit "
            f"takes about {needed}, so the choice will be careful, or none",
            file=sys.stderr,
        )
    return found


def _for_test(count: int, pilot: int, kind: str) -> int:
    """Number of prompts left for the test."""
    if count - pilot < 8:
        raise RiverError(
            f"--prompts: {count} {kind}, of which {pilot} are for the pilot: expected at least 8 "
            "for the test"
        )
    return count - pilot


def _report(
    options: CalibrateOptions, outcome: Outcome, made: Circumstances, seconds: float
) -> int:
    console = make_console()
    print_outcome(console, outcome, made)
    chosen = outcome.chosen
    if options.files.json_file is not None:
        write_json(options.files.json_file, as_json(outcome, made, seconds))
    if chosen is None:
        nearest = min(outcome.tests, key=lambda test: test.loss, default=None)
        message = f"could not show {target(outcome)}"
        if nearest is not None:
            message += f"; nearest: {describe(nearest.policy)}, measured {1 - nearest.loss:.2%}"
        console.print(f"[red]{message}[/red]")
        return 1
    console.print(f"{describe(chosen.policy)}. {guarantee(outcome, made)}")
    if options.target.check is not None:
        return 0
    text = as_yaml(river_config(outcome, chosen, made), made.command)
    if options.files.output is not None:
        write_text(options.files.output, text)
        console.print(f"written: {options.files.output} ({seconds:.0f} s)", markup=False)
    else:
        console.print(text, markup=False)
    return 0


def seen_by_weights(folder: Path, prompts: Prompts, half: str | None) -> str | None:
    """A note if ``river-vllm quantize`` made the weights in ``folder`` with rows of the same files;
    None if it used other files or the other half.

    Args:
        half: half of the files' rows that ``prompts`` are from.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        made = config["quantization_config"]["made_with"]
    except (OSError, ValueError, KeyError, TypeError):  # made by another program
        return None
    if not set(made.get("prompts_sha256", ())) & set(prompts.files):
        return None
    if half is not None and made.get("half") not in (None, half):
        return None
    return (
        f"the weights in '{folder}' were made with rows of the same files ({made['prompts']}): the "
        "guarantee does not hold for prompts that they have not seen; use --half first for "
        "'quantize' and --half second here"
    )
