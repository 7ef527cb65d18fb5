"""How the server is ending: set once, read by the routes and by the command's exit status."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Ending:
    """Whether the engine is being shut down, and whether that is because it has failed."""

    begun: bool = False
    failed: bool = False

    def begin(self, failed: bool) -> None:
        """The first call says why; vLLM shuts its client down more than once."""
        if not self.begun:
            self.begun, self.failed = True, failed


ending = Ending()
"""This process's."""
