"""Seconds of a pass by its number of rows, for each kind of pass.

Exits are allowed in steps that they make shorter, and drafts are as long as they pay
(``modes/verified/depth.py``): both ask here. The first start times whole passes and saves the
curves for later starts. Real passes correct them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import platform
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from river_vllm.errors import describe_errors
from river_vllm.host import cpu_info, write_whole

logger = logging.getLogger("vllm.river")

Kind = Literal["backbone", "river", "draft", "verify"]
"""``backbone``: a decode step of the backbone with its logits, as stock vLLM runs it.
``river``: a decode step whose rows leave after the usual layers. ``draft``: a draft pass.
``verify``: a step that verifies drafts, where River's own product runs it (``River.dense``)."""
Probe = tuple[Kind, float, float]
"""A kind of pass, the seconds of the usual step, and those to add to the pass's for its loss."""

ROWS = (1, 2, 4, 8, 16, 32)
REPEATS = 5
LONG, STEEP = 0.5, 1.6
"""Passes over more rows are not timed once a pass takes this many seconds, and this many times as
long as over half the rows."""
RATE, SURPRISE = 1 / 16, 2.0
"""Weight of one pass in the exponential average; a pass counts as at most this factor slower or
faster than expected."""
FADE = 1 / 256
"""Weight, at each pass, of the start's timing in a point that is not observed."""

PAYS, SURE = 1.05, 1.15
"""Minimum speed-up for exits; minimum speed-up at which probing stops, so that equal requests get
equal answers."""
STALE = 10_000
"""Steps without an observation after which a sure speed-up is probed too."""
PROBE_SHARE, LEAST_LOSS = 0.01, 0.5
"""Share of the time that probes may cost; share of a step that each counts as costing at least. So
at least 50 steps follow a probe that gained nothing."""
SHARED = 64
"""Passes between two exchanges of tensor-parallel ranks."""


class CostCurve:
    """Seconds by rows: straight between the points and beyond the last, never falling.

    Where two points contradict each other, the newer one holds. Of two equally new ones the faster
    holds, since other load only ever makes a pass slower.
    """

    def __init__(self, points: Mapping[int, float]) -> None:
        self.rows = tuple(sorted(points))
        self.observed = 0
        self._timed = [points[rows] for rows in self.rows]
        self._seen = [0] * len(self.rows)
        self._fit()
        self._start = list(self._seconds)

    def __call__(self, rows: int) -> float:
        right = bisect_left(self.rows, rows)
        left = max(0, right - 1)
        return self._seconds[left] + self._slopes[right] * (rows - self.rows[left])

    def observe(self, rows: int, seconds: float, step: int) -> None:
        """Move the points on both sides of ``rows`` towards a pass that ended in ``step``.

        All other points fade: each returns to its value at start, scaled as the observed ones are.
        """
        near = self._beside(rows)
        change = min(max(seconds / self(rows), 1 / SURPRISE), SURPRISE) ** RATE
        scale = self._seconds[near[0]] * change / self._start[near[0]]
        for i, start in enumerate(self._start):
            if i in near:
                self._timed[i], self._seen[i] = self._seconds[i] * change, step
            else:
                self._timed[i] *= (scale * start / self._timed[i]) ** FADE
        self.observed += 1
        self._fit()

    def seen(self, rows: int) -> int:
        """The last step with a pass of about ``rows``; 0 where there was none."""
        return max(self._seen[i] for i in self._beside(rows))

    @property
    def outdated(self) -> bool:
        """Whether real passes take less than half the time measured at start, in a busy moment.

        Slower passes prove nothing: long contexts and other load slow them down.
        """
        return any(SURPRISE * now < at for now, at in zip(self._seconds, self._start, strict=True))

    def _beside(self, rows: int) -> tuple[int, int]:
        """The points on both sides of ``rows``; at a point and beyond the ends, one point twice."""
        right = min(bisect_left(self.rows, rows), len(self.rows) - 1)
        return (right if rows >= self.rows[right] else max(0, right - 1)), right

    def _fit(self) -> None:
        fitted = dict(enumerate(self._timed))
        if self._timed != sorted(self._timed):
            order, fitted = sorted(fitted, key=lambda i: (-self._seen[i], self._timed[i])), {}
            for i in order:
                low = max((fitted[j] for j in fitted if j < i), default=0.0)
                high = min((fitted[j] for j in fitted if j > i), default=math.inf)
                fitted[i] = min(max(self._timed[i], low), high)
        self._seconds = [fitted[i] for i in range(len(self.rows))]
        steps = zip(pairwise(self.rows), pairwise(self._seconds), strict=True)
        between = [(b - a) / (y - x) for (x, y), (a, b) in steps]
        beyond = min([self._seconds[-1] / self.rows[-1], *between[-1:]])
        self._slopes = [0.0, *between, beyond]


class _Saved(BaseModel):
    """The file of ``Costs.save``; another format has another name, since the key names the code."""

    model_config = ConfigDict(allow_inf_nan=False)

    key: dict[str, str | int]
    at: float
    curves: dict[Kind, Annotated[dict[PositiveInt, PositiveFloat], Field(min_length=1)]]


class Costs:
    """The curve of each kind of pass, and whether exits pay.

    Args:
        key: what the times depend on beside the CPU and ``most``.
        most: the most rows that a pass of each kind can have.
        share: returns rank 0's value on every tensor-parallel rank. All ranks then have rank 0's
            times and decide alike; they exchange once in ``SHARED`` passes.
        clock: seconds for measuring.
    """

    def __init__(
        self,
        key: Mapping[str, str | int] | None = None,
        most: Mapping[Kind, int] | None = None,
        share: Callable[[Any], Any] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._most = dict(most or {})
        rows = {f"rows of {kind}": most for kind, most in self._most.items()}
        self._key: dict[str, str | int] = {**machine(), **(key or {}), **rows}
        self._share = share
        self._clock = clock
        self._learns = True
        self._curves: dict[Kind, CostCurve] = {}
        self._file: Path | None = None
        self._steps = 0
        self._probe: Probe | None = None
        self._unlearnt: list[tuple[Kind, int, float, Probe | None]] = []
        self._owed = 0.0
        """Seconds that probes have lost and later steps have not yet earned."""
        self._gained = False
        """Whether the last probe has gained: another follows."""

    @classmethod
    def fixed(cls, points: Mapping[Kind, Mapping[int, float]]) -> Costs:
        """Curves through these seconds by rows, which real passes do not change."""
        costs = cls(most={kind: max(curve) for kind, curve in points.items()})
        costs._take(points, "given", time.time())
        costs._learns = False
        return costs

    def seconds(self, kind: Kind, rows: int) -> float:
        """Seconds of a pass of ``kind`` over ``rows``; a ``KeyError`` if it was not measured."""
        return self._curves[kind](rows)

    def verifying(self, rows: int, exact: bool = False) -> float:
        """Seconds of a pass that verifies drafts; with ``exact`` a row of it needs stock vLLM's
        bits, which ``River.dense`` does not give."""
        own = "verify" in self._curves and not exact
        return self.seconds("verify" if own else "backbone", rows)

    def measure(self, runs: Mapping[Kind, Callable[[int], object]]) -> None:
        """Time whole passes of each kind, and replace the curves.

        Each round runs all passes in turn, so a busy moment affects one repeat of many. The second
        fastest repeat counts: one wrong reading of a clock decides nothing. Where time grows with
        the rows, as on a CPU without bf16 instructions, long passes are extrapolated. ``runs`` has
        for each kind a function that runs a pass of so many rows to its end.
        """
        taken: dict[Kind, dict[int, list[float]]] = {kind: {} for kind in runs}
        ended = set()
        for turn, rows, (kind, found) in product(range(REPEATS), ROWS, taken.items()):
            if turn == 0 and rows <= self._most[kind] and kind not in ended:
                runs[kind](rows)  # The first pass of a shape prepares later ones.
                found[rows] = []
            if rows in found:
                start = self._clock()
                runs[kind](rows)
                seconds = self._agreed(self._clock() - start)
                found[rows].append(seconds)
                if seconds > max(LONG, STEEP * found.get(rows // 2, [math.inf])[0]):
                    ended.add(kind)
        points: dict[Kind, Mapping[int, float]] = {}
        for kind, found in taken.items():
            curve = CostCurve({rows: sorted(times)[1] for rows, times in found.items()})
            points[kind] = {rows: curve(rows) for rows in ROWS if rows <= self._most[kind]}
        self._take(points, "measured at start", time.time())

    def observe(self, kind: Kind, rows: int, seconds: float) -> None:
        """Learn from a real pass, if passes of its kind were measured."""
        if not self._learns or kind not in self._curves or rows <= 0:
            return
        probe = self._probe if self._probe and self._probe[0] == kind else None
        self._probe = None if probe else self._probe
        self._unlearnt.append((kind, rows, seconds, probe))
        if self._share is None or len(self._unlearnt) == SHARED:
            observed, self._unlearnt = self._agreed(self._unlearnt), []
            for one in observed:
                self._learn(*one)

    def speedup(self, rows: int) -> float:
        """Time of a backbone step / time of a step with exits, or of a draft pass where exits were
        not timed."""
        return self.seconds("backbone", rows) / self.seconds(self._in_4_bit, rows)

    def pays(self, rows: int) -> bool:
        """Whether exits make a step of ``rows`` shorter; also true where nothing was measured."""
        return not self._curves or self.speedup(rows) >= PAYS

    @property
    def max_rows(self) -> int | None:
        """The most rows for which exits pay; None where nothing was measured."""
        if not self._curves:
            return None
        return next((n for n in range(self._most[self._in_4_bit], 0, -1) if self.pays(n)), 0)

    def choose(self, rows: int) -> bool:
        """Whether exits are allowed in the coming step, all of whose ``rows`` may leave.

        As ``pays`` says, except in probes, which time the kind of step that does not seem to pay.
        A speed-up that is ``SURE`` is probed only once it is ``STALE``.
        """
        if not self._curves:
            return True
        pays, self._probe = self.pays(rows), None
        usual: Kind = "river" if pays else "backbone"
        other: Kind = "backbone" if pays else "river"
        stale = self._steps - self._curves[other].seen(rows) >= STALE
        if pays and self.speedup(rows) >= SURE and not (stale or self._gained):
            return True
        seconds = self.seconds(usual, rows)
        return pays ^ self._start_probe(other, seconds, -seconds)

    def try_drafts(self, rows: int, added: int, exact: bool) -> bool:
        """Whether a step of ``rows`` probes: drafts ``added`` tokens that seem not to pay."""
        usual = self.verifying(rows, exact)
        return self._start_probe("draft", usual, self.verifying(rows + added, exact) - usual)

    def describe(self, now: float) -> dict[str, Any]:
        """For each kind: milliseconds by rows, their source, their age ``now`` (seconds since the
        epoch), and the number of corrections."""
        return {
            kind: {
                "ms": {str(rows): round(1e3 * curve(rows), 2) for rows in curve.rows},
                "from": self._from,
                "age_seconds": round(max(0.0, now - self._at), 1),
                "corrected_by": curve.observed,
            }
            for kind, curve in self._curves.items()
        }

    def crossover(self) -> dict[str, Any]:
        """The most rows with which exits pay, and the speed-up by rows."""
        rows = self._curves[self._in_4_bit].rows if self._curves else ()
        return {
            "pays_up_to_rows": self.max_rows,
            "speedup_by_rows": {str(r): round(self.speedup(r), 2) for r in rows},
        }

    @property
    def file_name(self) -> str:
        """The name of the file, in a folder, that holds curves with this key."""
        key = json.dumps(self._key, sort_keys=True)
        return f"costs-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"

    def save(self, path: Path) -> bool:
        """Keep the curves for the next start; False, with a line in the log, where that fails."""
        curves = {k: {str(rows): c(rows) for rows in c.rows} for k, c in self._curves.items()}
        data = {"key": self._key, "at": self._at, "curves": curves}
        try:
            write_whole(path, json.dumps(data, indent=1).encode())
        except OSError as error:
            logger.debug("River: cannot save what steps cost in '%s': %s", path, error)
            return False
        self._file = path
        return True

    def load(self, path: Path) -> bool:
        """Take the curves that an earlier start has saved; False where there are none, or the file
        is damaged or does not fit."""
        try:
            found = _Saved.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (OSError, ValidationError) as error:
            why = error if isinstance(error, OSError) else describe_errors(error, _Saved)
            logger.warning("River: measuring again, '%s' cannot be used: %s", path, why)
            return False
        if found.key != self._key or found.curves.keys() != self._most.keys():
            logger.debug("River: '%s' is of another machine or model", path)
            return False
        self._take(found.curves, "an earlier start", found.at)
        self._file = path
        return True

    @property
    def _in_4_bit(self) -> Kind:
        return "river" if "river" in self._curves else "draft"

    def _take(self, points: Mapping[Kind, Mapping[int, float]], origin: str, at: float) -> None:
        self._curves = {kind: CostCurve(seconds) for kind, seconds in points.items()}
        self._from, self._at = origin, at
        self._owed = LEAST_LOSS * max(curve(1) for curve in self._curves.values())

    def _agreed(self, value: Any) -> Any:
        return value if self._share is None else self._share(value)

    def _start_probe(self, kind: Kind, usual: float, offset: float) -> bool:
        if not self._learns or self._owed > 0:
            return False
        # Until its time is known, a probe counts as a whole step lost.
        self._probe, self._owed = (kind, usual, offset), usual
        return True

    def _learn(self, kind: Kind, rows: int, seconds: float, probe: Probe | None) -> None:
        if not 0 < seconds < math.inf:
            return
        # A step has one pass that is no draft.
        self._steps += kind != "draft"
        self._curves[kind].observe(rows, seconds, self._steps)
        self._owed -= PROBE_SHARE * seconds
        if probe is not None:
            usual, lost = probe[1], seconds + probe[2]
            self._gained = PAYS * (lost + usual) <= usual
            self._owed = 0.0 if self._gained else max(lost, LEAST_LOSS * usual)
        if self._file is not None and self._curves[kind].outdated:
            logger.info("River: passes are faster than '%s' says, it is removed", self._file)
            with contextlib.suppress(OSError):
                self._file.unlink()
            self._file = None


def machine() -> dict[str, str | int]:
    """The CPU, and how many of them this process may use."""
    # On aarch64 a CPU has numbers in place of a name.
    names = {line for line in cpu_info() if line.startswith(("model name", "CPU impl", "CPU part"))}
    return {
        "cpu": ", ".join(sorted(names)) or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
    }
