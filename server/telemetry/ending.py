"""The server's shutdown: set once, read by the routes and by the command's exit status."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Ending:
    """Whether the engine is shutting down, and whether a failure is the reason."""

    begun: bool = False
    failed: bool = False

    def begin(self, failed: bool) -> None:
        """Set the reason; later calls do nothing, since vLLM shuts its client down repeatedly."""
        if not self.begun:
            self.begun, self.failed = True, failed


ending = Ending()
"""The shutdown of this process."""
