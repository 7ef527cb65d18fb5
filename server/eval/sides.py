"""The sides of an evaluation, and lm-eval on each with ``/river/stats`` before and after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from river_vllm.errors import RiverError
from server.cli.endpoint import Endpoint, find_endpoint, list_models, read_key
from server.eval.options import EvalOptions

_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Side:
    """A server with its model and river settings."""

    endpoint: Endpoint
    river: dict[str, Any] | None

    def __str__(self) -> str:
        river = "as the server has it" if self.river is None else self.river
        return f"{self.endpoint.base}, model {self.endpoint.model}, river {river}"

    def stats(self) -> dict[str, Any]:
        """The totals of ``/river/stats``; empty where there are none."""
        url = f"{self.endpoint.base.removesuffix('/v1')}/river/stats"
        try:
            answer = httpx.get(url, headers=self.endpoint.headers, timeout=_SECONDS)
            totals: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
        except (httpx.HTTPError, ValueError):
            return {}
        return totals


@dataclass(frozen=True, slots=True)
class Depth:
    """Exit depth of the decode tokens between two readings of ``/river/stats``."""

    tokens: int
    num_layers: int
    mean_exit_layer: float
    held: int
    """Tokens held on the backbone because leaving would not have paid."""

    @classmethod
    def between(cls, before: dict[str, Any], after: dict[str, Any]) -> Self | None:
        """The difference of two readings; None without counts or after a restart."""
        if before.get("server") != after.get("server"):
            return None
        tokens, layers, held = (
            after.get(name, 0) - before.get(name, 0)
            for name in ("tokens", "backbone_layers", "held_tokens")
        )
        if tokens <= 0:
            return None
        return cls(tokens, after["num_layers"], layers / tokens, held)

    def __str__(self) -> str:
        return (
            f"mean exit layer {self.mean_exit_layer:.2f} of {self.num_layers}, "
            f"{self.held} of {self.tokens} decode tokens held"
        )


def find_sides(options: EvalOptions) -> dict[str, Side]:
    """Sides A and B, whose servers have answered.

    Raises:
        RiverError: a server cannot be used, or does not serve the model.
    """
    model = options.against_model or options.model
    against = options.against or options.base_url
    return {
        "A": _side("--model", options.base_url, options.model, options.river),
        "B": _side("--against-model", against, model, options.against_river),
    }


def _side(option: str, base: str, model: str | None, river: dict[str, Any] | None) -> Side:
    key = read_key(None, None)  # lm-eval reads the same variable
    endpoint = find_endpoint(base, model, key, option)
    if model is not None and model not in (listed := list_models(base, endpoint.headers)):
        raise RiverError(f"{option} = {model!r}: expected one of {', '.join(listed)}")
    return Side(endpoint, river)


class HarnessError(Exception):
    """lm-eval failed and printed the reason; carries its exit status."""


def ask(options: EvalOptions, folders: tuple[Path, Path]) -> dict[str, dict[str, Any]]:
    """Run lm-eval on both sides; its results and samples go to ``folders``.

    Returns:
        Each side's server, model, river settings and exit depth.

    Raises:
        RiverError: a server cannot be used.
        HarnessError: a request or lm-eval failed.
    """
    told: dict[str, dict[str, Any]] = {}
    for (name, side), folder in zip(find_sides(options).items(), folders, strict=True):
        print(f"{name}: {side}", file=sys.stderr)
        before = side.stats()
        _run_harness(options, side, folder)
        depth = Depth.between(before, side.stats())
        print(f"{name}: {depth or 'no decode token in /river/stats'}", file=sys.stderr)
        told[name] = {
            "base": side.endpoint.base,
            "model": side.endpoint.model,
            "river": side.river,
            "depth": asdict(depth) if depth else None,
        }
    return told


def _run_harness(options: EvalOptions, side: Side, folder: Path) -> None:
    river = {} if side.river is None else {"river": side.river}
    job = options.model_dump(mode="json", include={"tasks", "data", "include_path"})
    job["output"] = str(folder)
    job["arguments"] = {
        "model": "local-chat-completions" if options.chat else "local-completions",
        "model_args": {
            "model": side.endpoint.model,
            "base_url": f"{side.endpoint.base}/{'chat/' if options.chat else ''}completions",
            "num_concurrent": options.concurrency,
            "timeout": options.timeout,
            "tokenizer_backend": None,
            "tokenized_requests": False,
        },
        "num_fewshot": options.num_fewshot,
        "limit": options.limit,
        "gen_kwargs": (options.gen_kwargs or {}) | river,
        "apply_chat_template": options.chat,
        "fewshot_as_multiturn": options.chat,
        "confirm_run_unsafe_code": options.confirm_run_unsafe_code,
    }
    environment = dict(os.environ)
    if options.confirm_run_unsafe_code:
        environment["HF_ALLOW_CODE_EVAL"] = "1"  # the metric of such tasks requires it
    if not sys.stderr.isatty():
        environment["TQDM_DISABLE"] = "1"
    done = subprocess.run(
        [sys.executable, "-m", "server.eval.harness"],
        input=json.dumps(job).encode(),
        stdout=subprocess.DEVNULL,  # lm-eval's table has one side only
        env=environment,
    )
    if done.returncode:
        raise HarnessError(done.returncode)
