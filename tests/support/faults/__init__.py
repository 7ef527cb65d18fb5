"""Faults on order: a vLLM plugin that a test puts beside River (``Faults``), never installed."""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
NAME = "river_test_faults"
METADATA = {
    "METADATA": "Metadata-Version: 2.1\nName: river-test-faults\nVersion: 0\n",
    "entry_points.txt": f"[vllm.general_plugins]\n{NAME} = tests.support.faults.plugin:load\n",
}


class Faults:
    """What a server's forward passes shall suffer, changed while it runs.

    Args:
        folder: where the plugin's metadata and the order are written.
    """

    def __init__(self, folder: Path) -> None:
        distribution = folder / f"{NAME}-0.dist-info"
        distribution.mkdir(parents=True)
        for name, text in METADATA.items():
            (distribution / name).write_text(text)
        self._order = folder / "order"
        self.order("")
        paths = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "VLLM_PLUGINS": f"river,{NAME}",
            "RIVER_TEST_ORDER": str(self._order),
        }

    def order(self, text: str) -> None:
        """``sleep SECONDS``, ``raise``, or nothing; holds for every step from now on."""
        draft = self._order.with_suffix(".new")
        draft.write_text(text)
        draft.replace(self._order)
