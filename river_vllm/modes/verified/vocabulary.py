"""Which tokens the drafts of a step are picked from: a list and what the requests have said, or
all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from river_vllm.modes.verified.draft import Draft

MEMORY = 0.99
"""What is left of a request's misses after one more token."""
MISSES = 3.0
"""So many, of the last hundred tokens, cost more accepted drafts than the short LM head saves."""


@dataclass(slots=True)
class _Said:
    """A request's text so far.

    Attributes:
        length: tokens of it that were looked at.
        own: tokens in it that are not listed.
        misses: tokens of the answer that could not have been drafted, the older the less.
    """

    length: int = 0
    own: set[int] = field(default_factory=set)
    misses: float = 0.0


class Vocabulary:
    """The tokens of the drafts' LM head.

    Args:
        listed: int64, ascending.
        size: of the whole vocabulary.
    """

    def __init__(self, listed: torch.Tensor, size: int) -> None:
        self._listed = listed
        self.size = len(listed)
        """Tokens in the list."""
        self._is_listed = np.zeros(size, dtype=np.bool_)
        self._is_listed[listed.cpu().numpy()] = True
        # Each costs as much to read as four in 4 bit, for each row of a pass.
        self._most = (size - len(listed)) // 8
        self._requests: dict[str, _Said] = {}

    def tokens(self, drafts: Sequence[Draft]) -> torch.Tensor | None:
        """What a step's drafts are picked from.

        Returns:
            int64: the list, then tokens of the requests' own text; None: every token. A request
            whose answer often leaves its text and the list, as in another language, has the full
            LM head, and with it all that draft beside it.
        """
        said = [self._read(draft) for draft in drafts if draft.limit]
        own = set().union(*(one.own for one in said))
        if len(own) > self._most or any(one.misses > MISSES for one in said):
            return None
        added = torch.tensor(sorted(own), dtype=torch.int64, device=self._listed.device)
        return torch.cat([self._listed, added])

    def forget(self, request_ids: Iterable[str]) -> None:
        """Drop requests that have ended."""
        for request_id in request_ids:
            self._requests.pop(request_id, None)

    def _read(self, draft: Draft) -> _Said:
        """Look at what the request's text has become."""
        said = self._requests.setdefault(draft.request_id, _Said())
        new = np.append(draft.known[said.length :], draft.first_token)
        # vLLM admits what the tokenizer knows, which may be more than the LM head has.
        new = new[new < len(self._is_listed)]
        unlisted = ~self._is_listed[new]
        if not said.length:
            said.own.update(np.unique(new[unlisted]).tolist())
        else:
            for token, missing in zip(new.tolist(), unlisted.tolist(), strict=True):
                said.misses = said.misses * MEMORY + (missing and token not in said.own)
                if missing:
                    said.own.add(token)
        said.length = len(draft.known) + 1
        return said
