"""Temporary cache folders for a server that cannot write to the usual ones."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from river_vllm.host import FOLDER_VARIABLE, base, expanded, unwritable, user_cache


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
        before = {name: os.environ.get(name) for name in refused}
        os.environ.update({name: f"{temporary}/{name.lower()}" for name in refused})
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
