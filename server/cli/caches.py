"""A server starts where no cache folder can be written to: what it would keep goes elsewhere."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from river_vllm.folders import FOLDER_VARIABLE, base, expanded, unwritable, user_cache


def folders() -> dict[str, Path]:
    """By the variable that names each: what River, vLLM and torch write to, as things stand.

    Hugging Face's is among them only where it is not there: one that cannot be written to may hold
    the model.
    """
    cache, config = base("XDG_CACHE_HOME", "~/.cache"), base("XDG_CONFIG_HOME", "~/.config")
    usual = {
        FOLDER_VARIABLE: user_cache(),
        "VLLM_CACHE_ROOT": cache / "vllm",
        "VLLM_CONFIG_ROOT": config / "vllm",
        "HF_HOME": cache / "huggingface",
    }
    found = {name: expanded(os.environ.get(name) or str(path)) for name, path in usual.items()}
    # Path.is_dir raises where a folder on the way may not be entered.
    if os.path.isdir(found["HF_HOME"]):  # noqa: PTH112
        del found["HF_HOME"]
    if inductor := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        found["TORCHINDUCTOR_CACHE_DIR"] = Path(inductor)
    return found


@contextmanager
def writable_caches() -> Iterator[None]:
    """Inside, variables name a temporary folder in place of each that cannot be written to."""
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
