"""Guesses for the river: what followed the last time that the text ended like this.

Prompt lookup (Saxena 2023), as in vLLM's ``v1/spec_decode/ngram_proposer.py``. The river reads
guesses as further rows of the pass that it makes in any case, so a wrong one costs next to nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LENGTHS = (3, 2)
"""Tokens at the end that are looked for, the longest first."""


def continuation(tokens: npt.NDArray[np.int32], most: int) -> list[int]:
    """What followed the last earlier place at which the end of ``tokens`` stands.

    Args:
        tokens: ``[tokens]``, a request's prompt and answer so far.
        most: tokens to return at most.

    Returns:
        None to ``most`` tokens.
    """
    for length in LENGTHS:
        starts = len(tokens) - length
        if most <= 0 or starts <= 0:
            continue
        same = tokens[:starts] == tokens[starts]
        for place in range(1, length):
            same &= tokens[place : place + starts] == tokens[starts + place]
        found = np.flatnonzero(same)
        if found.size:
            after = int(found[-1]) + length
            return [int(token) for token in tokens[after : after + most]]
    return []
