"""``river-vllm serve``: vLLM's own server, its parser and its start-up, with River in force."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from river_vllm.config import PLUGIN
from river_vllm.errors import RiverError
from river_vllm.host import REFUSAL_FILE, Stage, file_named_by, mark
from server.cli.caches import writable_caches
from server.cli.narration import narrated
from server.cli.options import add_river_options, api_keys, metrics_keys, river_config
from server.cli.refusals import refusal
from server.cli.stopping import end, ended_by_sigterm
from server.telemetry.ending import ending

GROUPS = ("vllm.general_plugins", "vllm.endpoint_plugins")
AUTH_MIDDLEWARE = "server.http.auth.RiverAuthMiddleware"
HOST = "127.0.0.1"
ENVIRONMENT = {
    # vLLM keeps one CPU core for its front end by default; on a small machine that is half.
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    # vLLM's own command sets it too (cli_env_setup); a fork could copy a thread's held locks.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
CPU_KV_CACHE = ("VLLM_CPU_KVCACHE_SPACE", "4")
"""GiB; without it vLLM's CPU build takes most of the machine's memory for the K/V cache. The
variable overrides --kv-cache-memory-bytes (vLLM ``platforms/cpu.py``)."""


def serve(argv: Sequence[str]) -> int:
    """Start the server and run it until a signal stops it; the exit status."""
    if any(a in ("-h", "--help") or a.startswith("--help=") for a in argv):
        parse(argv)  # prints the help and exits
    # The only process of a container gets no signal without a handler for it.
    with ended_by_sigterm(), writable_caches(), narrated() as narrator:
        prepare_environment()
        args = parse(argv)
        configure(args)
        narrator.watch(args)
        mark(Stage.ENGINE)
        return run(args)


def prepare_environment() -> None:
    """Set variables that vLLM reads at import; the user's own values stay.

    Raises:
        RiverError: vLLM is not installed, or would not load River's plugin.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and PLUGIN not in allowed.split(","):
        os.environ["VLLM_PLUGINS"] = f"{allowed},{PLUGIN}" if allowed else PLUGIN
    check_plugins()


def check_plugins() -> None:
    """Refuse to start without River's plugin; vLLM would log the failure and go on.

    Raises:
        RiverError: vLLM cannot be imported, or an entry point is missing or broken.
    """
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise RiverError(
            f"vLLM cannot be imported ({error}); install river-vllm with the extra 'cpu' or 'cuda'"
        ) from error
    for group in GROUPS:
        found = [point for point in entry_points(group=group) if point.name == PLUGIN]
        if not found:
            raise RiverError(
                f"River is not active: no entry point '{PLUGIN}' in {group}; "
                "install river-vllm again in this environment"
            )
        try:
            found[0].load()
        except Exception as error:
            raise RiverError(f"River is not active: {group} failed to load: {error}") from error


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse with vLLM's parser of ``vllm serve``, extended by River's options."""
    from server.cli.vllm_cli import ServeParser, make_arg_parser

    parser = ServeParser(
        prog="river-vllm serve",
        description="Serve a model with River over the OpenAI API. Takes every option of vLLM's "
        "own server; '--help=River', '--help=all' and '--help=GROUP' list them.",
    )
    make_arg_parser(parser)
    add_river_options(parser)
    parser.set_defaults(host=HOST)
    args: argparse.Namespace = parser.parse_args(list(argv))
    return args


def configure(args: argparse.Namespace) -> None:
    """Add River's architecture, settings and middleware to the arguments.

    Raises:
        RiverError: a setting is wrong; nothing has been started yet.
    """
    from river_vllm.plugin import merge_engine_args

    if args.model_tag is None:
        raise RiverError("no model given: river-vllm serve MODEL")
    if not args.uds and not 0 < args.port < 65536:
        raise RiverError(f"--port {args.port}: must be between 1 and 65535")
    _refuse_other_front_ends(args)
    _refuse_unreadable(args)
    args.model, args.model_tag = args.model_tag, None
    args.api_key = api_keys(args)
    args.metrics_keys = metrics_keys(args)
    if args.kv_cache_memory_bytes is None:
        os.environ.setdefault(*CPU_KV_CACHE)
    options = dict(vars(args))
    merged = merge_engine_args(args.model, river_config(args), options)
    args.hf_overrides = merged["hf_overrides"]
    args.additional_config = merged["additional_config"]
    args.middleware = [*args.middleware, AUTH_MIDDLEWARE]


def _refuse_other_front_ends(args: argparse.Namespace) -> None:
    from river_vllm.compat import vllm_envs

    others = {
        "--grpc (leave it out)": args.grpc,
        "VLLM_USE_RUST_FRONTEND (leave it out)": vllm_envs.VLLM_USE_RUST_FRONTEND,
    }
    for name, given in others.items():
        if given:
            raise RiverError(
                f"{name}: vLLM's other front ends have no 'river' field, no /river and none of "
                "its keys"
            )


def _refuse_unreadable(args: argparse.Namespace) -> None:
    """Check TLS files before the model loads; the server reads them only when it listens."""
    for name in ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs"):
        if path := getattr(args, name):
            try:
                Path(path).open("rb").close()
            except OSError as error:
                option = f"--{name.replace('_', '-')}"
                raise RiverError(f"{option} '{path}': {error.strerror or error}") from None


def run(args: argparse.Namespace) -> int:
    """Run vLLM's own start-up; a refusal is one line and exit status 1."""
    from river_vllm.patches import sigterm_is_heard_while_loading
    from server.cli.vllm_cli import ServeSubcommand

    command = ServeSubcommand()
    with file_named_by(REFUSAL_FILE) as left, sigterm_is_heard_while_loading(_end_while_loading):
        try:
            _validate(command, args)
            command.cmd(args)
        except KeyboardInterrupt:
            return 130
        except Exception as error:
            line = refusal(error, args, left)
            if line is None:
                raise
            print(f"river-vllm: error: {line}", file=sys.stderr)
            return 1
        finally:
            mark(Stage.STOPPED)
    if ending.failed:
        # vLLM ends with status 0 here, which a supervisor would take for a success.
        print("river-vllm: error: the server has failed, see the log above", file=sys.stderr)
        return 1
    print("River: the server has stopped", flush=True)
    return 0


def _validate(command: Any, args: argparse.Namespace) -> None:
    """Let vLLM check the arguments.

    Raises:
        RiverError: vLLM refuses them; has its message.
    """
    try:
        command.validate(args)
    except (TypeError, ValueError) as error:
        raise RiverError(str(error)) from error


def _end_while_loading(number: int, frame: object) -> None:
    """Signal handler while loading: vLLM stops its engine and workers on the way out."""
    mark(Stage.STOPPED)
    print("river-vllm: told to stop while the model was loading", file=sys.stderr, flush=True)
    end(number, frame)
