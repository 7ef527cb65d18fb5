"""The environment of a command that runs vLLM: variables, plugins, caches, SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path

from river_vllm.config import PLUGIN
from river_vllm.errors import RiverError
from river_vllm.host import FOLDER_VARIABLE, base, expanded, unwritable, user_cache

GROUPS = ("vllm.general_plugins", "vllm.endpoint_plugins")
ENVIRONMENT = {
    # vLLM keeps one CPU core for its front end by default; on a small machine that is half.
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    # vLLM's own command sets it too (cli_env_setup); a fork could copy a thread's held locks.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


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


def folders() -> dict[str, Path]:
    """The folders that River, vLLM and torch write to, by their environment variables.

    Hugging Face's folder is included only if it is missing: a read-only one may hold the model.
    """
    cache, config = base("XDG_CACHE_HOME", "~/.cache"), base("XDG_CONFIG_HOME", "~/.config")
    usual = {
        FOLDER_VARIABLE: user_cache(),
        "VLLM_CACHE_ROOT": cache / "vllm",
        "VLLM_CONFIG_ROOT": config / "vllm",
        "HF_HOME": cache / "huggingface",
    }
    found = {name: expanded(os.environ.get(name) or str(path)) for name, path in usual.items()}
    # Path.is_dir raises if a parent folder may not be entered.
    if os.path.isdir(found["HF_HOME"]):  # noqa: PTH112
        del found["HF_HOME"]
    if inductor := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        found["TORCHINDUCTOR_CACHE_DIR"] = Path(inductor)
    return found


@contextmanager
def writable_caches() -> Iterator[None]:
    """Point the variables of unwritable folders to temporary ones inside the block."""
    refused = {name: (path, why) for name, path in folders().items() if (why := unwritable(path))}
    if not refused:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="river-", ignore_cleanup_errors=True) as temporary:
        path, why = next(iter(refused.values()))
        print(
            f"River: warning: '{path}' cannot be written to ({why}). What would be kept there is "
            f"in '{temporary}' until the server ends, and is made again at the next start; to keep "
            f"it, set {' or '.join(refused)}, or HOME, to a folder that can be written to",
            file=sys.stderr,
            flush=True,
        )
        before = {name: value for name in refused if (value := os.environ.get(name)) is not None}
        os.environ.update({name: f"{temporary}/{name.lower()}" for name in refused})
        try:
            yield
        finally:
            for name in refused:
                os.environ.pop(name, None)
            os.environ.update(before)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the process through its ``finally`` blocks, with status 143."""
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end(number: int, _frame: object) -> None:
    """Signal handler: raise ``SystemExit`` with the status of a process ended by it."""
    # Ignore further signals: the clean-up must not be interrupted.
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)
