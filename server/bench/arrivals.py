"""When an open loop sends: a schedule that does not wait for answers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal

ArrivalKind = Literal["poisson", "constant"]


def schedule(rate: float, kind: ArrivalKind, seed: int) -> Iterator[float]:
    """Seconds from the start of the level at which to send, without end.

    Poisson arrivals have independent exponential gaps of mean ``1/rate``; constant ones have
    exactly that gap.

    Args:
        rate: requests per second.
    """
    chance = random.Random(f"{seed}/arrivals/{rate}")
    when = 0.0
    while True:
        yield when
        when += chance.expovariate(rate) if kind == "poisson" else 1.0 / rate
