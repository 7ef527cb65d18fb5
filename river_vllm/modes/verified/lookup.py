"""Guesses by prompt lookup: the tokens after an earlier occurrence of a text's last tokens.

Saxena 2023, as in vLLM's ``v1/spec_decode/ngram_proposer.py``. Guesses are additional rows of a
draft pass that runs in any case, so a wrong guess costs next to nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LENGTHS = (3, 2)
"""Numbers of last tokens to search for, in this order."""


def continuation(tokens: npt.NDArray[np.int32], most: int) -> list[int]:
    """The tokens after the latest earlier occurrence of the last of ``tokens``.

    Args:
        tokens: ``[tokens]``, a request's prompt and answer so far.
        most: tokens to return at most.

    Returns:
        Up to ``most`` tokens; nothing where they have not occurred before.
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
