"""Options and tasks of earlier versions, with their replacements."""

from __future__ import annotations

from river_vllm.errors import REMOVED

REMOVED_OPTIONS = {
    **{f"--river-{name.replace('_', '-')}": instead for name, instead in REMOVED.items()},
    "--list-tokens": "leave it out: drafts are picked from every token",
    "--target-kl": "use --target-agreement",
    "--target-depth": "use --target-agreement, or --check FILE with settings of that depth",
}

REMOVED_TASKS = dict.fromkeys(
    ("river_humaneval", "river_humaneval_chat"),
    "use lm-eval's humaneval with --confirm-run-unsafe-code",
)
"""Removed tasks of ``river-vllm eval``."""
