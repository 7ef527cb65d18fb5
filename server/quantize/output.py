"""The folder of quantised weights: there when it is whole, and not before."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from server.bench.errors import BenchError


class WeightsFolder:
    """Written beside its final place, and moved there by ``finish``.

    Args:
        places: the first that can be written to is taken.

    Raises:
        BenchError: none can, or it holds something else.
    """

    def __init__(self, places: Sequence[Path]) -> None:
        reasons = []
        for place in places:
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                unfinished = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
                unfinished.mkdir()
            except OSError as error:
                reasons.append(f"'{place}': {error.strerror or error}")
                continue
            self.folder, self.unfinished = place, unfinished
            break
        else:
            raise BenchError(f"--output: {'; '.join(reasons) or 'the cache is off'}")
        if place.exists() and not _is_ours(place):
            self.unfinished.rmdir()
            raise BenchError(f"--output '{place}': exists and holds something else")

    def finish(self, model: Path, settings: dict[str, Any], record: dict[str, Any]) -> None:
        """Describe what was written, and put it in its place; an older one is replaced.

        Args:
            model: folder of the backbone.
            settings: ``quantizer``, ``group_size``, ``whole_zeros``.
            record: what it was made with, for people.
        """
        from river_vllm.weights.formats.own import own_config

        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        config["quantization_config"] = {**own_config(**settings), "made_with": record}
        text = json.dumps(config, indent=1)
        (self.unfinished / "config.json").write_text(text, encoding="utf-8")
        if self.folder.exists():
            old = self.unfinished.with_suffix(".old")
            self.folder.rename(old)
            self.unfinished.rename(self.folder)
            shutil.rmtree(old)
        else:
            self.unfinished.rename(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.unfinished, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    """An empty folder, or weights that this command has made."""
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return bool(config["quantization_config"]["quant_method"] == "river")
    except (OSError, ValueError, KeyError, TypeError):
        return False
