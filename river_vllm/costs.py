"""What a pass costs by rows: timed at a start, kept for the next one, corrected while serving.

Both modes go by it. Exits are allowed in steps of so many rows as they make shorter; drafts are as
long as they pay (``verify/depth.py``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PositiveInt, ValidationError

from river_vllm.config import describe_errors
from river_vllm.cost_curve import TOLERANCE, CostCurve
from river_vllm.folders import write_whole

logger = logging.getLogger("vllm.river")

Kind = Literal["backbone", "river", "draft", "verify"]
"""``backbone``: a decode step of the backbone with its logits, as stock vLLM runs it. ``verify``:
one that verifies drafts, where that is another (``River.dense``).
``river``: a decode step whose rows leave after the usual layers. ``draft``: a draft pass."""

Pass = Callable[[int], object]
"""Runs a pass of so many rows to its end."""

Clock = Callable[[], float]

ROWS = (1, 2, 4, 8, 16, 32)
REPEATS = 5
"""Rounds over all passes. Other load only makes a pass slower, so the fast repeats are the true
ones; but the fastest alone would let one wrong reading of a clock decide. The lower quartile is
right if two of five repeats are."""
AGAIN = 2
"""Times that what is out of line is measured again."""
LINE = 1.3
"""A ratio of two kinds is out of line if it differs by more from those of its neighbours."""

LONG = 0.5
"""Seconds of a pass from which on measuring it keeps people waiting."""
STEEP = 1.6
"""Twice the rows in more than so many times the time: rows cost in proportion."""

PAYS = 1.05
"""Below it, a gain is not told from noise; nor is a loss above its inverse."""

SURE = 1.15
"""A gain from which the other way is not tried: answers then do not depend on when a probe falls,
and steps in 4 bit that become dear are seen as they are."""
PROBE_EVERY = 50
"""Steps between two that are run the other way; more, as long as ``PROBE_SHARE`` asks for it."""
PROBE_SHARE = 0.01
"""Part of the time that such steps may cost."""


@dataclass(slots=True)
class _Probes:
    """Paces steps that are run the way that does not seem to pay, since it would never be known
    better otherwise."""

    since: int = 0
    """Steps after the last."""
    debt: float = 0.0
    """Seconds that they have lost and the others not yet earned."""

    def due(self) -> bool:
        """Count a step; whether the other way may be tried in it."""
        self.since += 1
        return self.since >= PROBE_EVERY and self.debt <= 0

    def earn(self, seconds: float) -> None:
        """A step that was run as usual took so long."""
        self.debt = max(0.0, self.debt - PROBE_SHARE * seconds)

    def lose(self, seconds: float) -> None:
        """A try cost so much more than a usual step."""
        self.debt += max(0.0, seconds)


class _SavedCurve(BaseModel):
    most: PositiveInt
    seconds: dict[PositiveInt, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        min_length=1
    )


class _Saved(BaseModel):
    """The file of ``Costs.save``; another format has another name, since the key names the code."""

    key: dict[str, str | int]
    at: Annotated[float, Field(allow_inf_nan=False)]
    curves: dict[Kind, _SavedCurve] = Field(min_length=1)


class Costs:
    """One curve for each kind of pass, and whether exits pay.

    Args:
        key: what the times depend on beside the CPU: River's code, shape of the model,
            kernels, instruction set, threads, settings, the most rows of each kind.
        learns: whether observed passes count; if not, nothing changes and nothing is tried.
        clock: seconds for measuring.
        now: seconds since the epoch, for telling how old a curve is.
    """

    def __init__(
        self,
        key: Mapping[str, str | int] | None = None,
        learns: bool = True,
        clock: Clock = time.perf_counter,
        now: Clock = time.time,
    ) -> None:
        self._key = dict(key or {})
        self._learns = learns
        self._clock = clock
        self._now = now
        self._curves: dict[Kind, CostCurve] = {}
        self._most: dict[Kind, int] = {}
        self._origin: dict[Kind, tuple[str, float]] = {}
        self._steps = 0
        self._seen: dict[Kind, int] = {}
        self._exits, self._drafts = _Probes(), _Probes()
        self._probe: Kind | None = None
        """What the step under way tries."""
        self._drafting = False
        """Whether the next draft pass is a try."""

    @classmethod
    def fixed(cls, points: Mapping[Kind, Mapping[int, float]]) -> Costs:
        """Curves through these seconds by rows, whatever is observed."""
        costs = cls(learns=False)
        most = {kind: max(curve) for kind, curve in points.items()}
        costs._take(points, most, "given", costs._now())
        return costs

    def seconds(self, kind: Kind, rows: int) -> float:
        """What a pass of ``kind`` over ``rows`` takes.

        Raises:
            KeyError: it has not been measured.
        """
        return self._curves[kind](rows)

    def verifying(self, rows: int, exact: bool = False) -> float:
        """Seconds of a pass that verifies drafts.

        Args:
            exact: whether a row of it is to have stock vLLM's bits, which ``River.dense`` has not.

        Raises:
            KeyError: it has not been measured.
        """
        own = "verify" in self._curves and not exact
        return self.seconds("verify" if own else "backbone", rows)

    def measure(self, passes: Mapping[Kind, Pass], most: Mapping[Kind, int]) -> None:
        """Time whole passes of each kind, by turns, in place of what was known.

        All are run once in each round, so that a busy moment meets one repeat of many points, not
        every repeat of one. What contradicts its neighbours is measured again. Where rows cost in
        proportion, as on a CPU without bf16 instructions, more of them are not run: the curve goes
        on straight.

        With tensor parallelism ``clock`` has to read the same on every rank, since what it reads
        decides which passes, in which the ranks meet, are run.

        Args:
            most: rows that a pass of each kind can have.
        """

        def timed(kind: Kind, rows: int) -> float:
            start = self._clock()
            passes[kind](rows)
            return self._clock() - start

        taken: dict[tuple[Kind, int], list[float]] = {}
        ended: set[Kind] = set()
        for rows in ROWS:
            for kind in passes:
                if rows > most[kind] or kind in ended:
                    continue
                # The first of a shape makes what later ones find.
                passes[kind](rows)
                seconds = taken[kind, rows] = [timed(kind, rows)]
                half = min(taken.get((kind, rows // 2), [math.inf]))
                if seconds[0] > max(LONG, STEEP * half):
                    seconds.append(timed(kind, rows))
                # Twice the rows in far more than twice the time is a wrong timing (``CostCurve``).
                if max(LONG, STEEP * half) < min(seconds) < 2 * TOLERANCE * half:
                    ended.add(kind)
        points = due = list(taken)
        for again in range(1 + AGAIN):
            for _ in range(REPEATS if again else REPEATS - 1):
                for kind, rows in due:
                    taken[kind, rows].append(timed(kind, rows))
            found: dict[Kind, dict[int, float]] = {}
            for (kind, rows), seconds in taken.items():
                found.setdefault(kind, {})[rows] = _lower_quartile(seconds)
            self._take(found, most, "measured at start", self._now())
            doubtful = out_of_line(found).union(*(c.contradicted for c in self._curves.values()))
            due = [(kind, rows) for kind, rows in points if rows in doubtful]
            if not due:
                return

    def observe(self, kind: Kind, rows: int, seconds: float) -> None:
        """Learn from a real pass.

        A river step is one whose rows have left, and early: what others take says little about
        leaving. Kinds that were not measured are let go.
        """
        curve = self._curves.get(kind)
        if not self._learns or curve is None or not (rows > 0 and 0 < seconds < math.inf):
            return
        self._pay(kind, rows, seconds)
        if kind != "draft":
            self._drafts.earn(seconds)
        elif self._drafting:
            self._drafting = False
            self._drafts.lose(seconds)
        # A step has one pass that is no draft.
        self._steps += kind != "draft"
        curve.observe(rows, seconds, self._steps - self._seen[kind])
        self._seen[kind] = self._steps
        self._origin[kind] = "serving", self._now()

    def tried(self, rows: int, seconds: float) -> None:
        """Account for a step that left, but of which a curve learns nothing."""
        if self._probe == "river":
            self._pay("river", rows, seconds)

    def speedup(self, rows: int) -> float:
        """What a backbone step takes over a step in 4 bit: one whose rows leave or, in an engine
        without exits, a draft pass. Beyond timings that cannot be believed, the ratio of the
        nearest rows whose timings can.

        Raises:
            KeyError: they have not been measured.
        """
        backbone, river = self._curves["backbone"], self._curves[self._in_4_bit]
        (first, last), (fewest, most) = backbone.span, river.span
        known = round(max(min(rows, last, most), first, fewest))
        return backbone(known) / river(known)

    def pays(self, rows: int) -> bool:
        """Whether leaving makes a step of ``rows`` shorter.

        What is neither a gain nor a loss decides nothing: then it pays if it does for more rows.
        The bytes that 4 bit saves are shared by the rows of a step. Where nothing was measured,
        nothing speaks against leaving.
        """
        if not self._compares:
            return True
        measured = self._curves[self._in_4_bit].rows
        for count in (rows, *(more for more in measured if more > rows)):
            speedup = self.speedup(count)
            if speedup >= PAYS:
                return True
            if speedup <= 1 / PAYS:
                return False
        return False

    @property
    def max_rows(self) -> int | None:
        """The most rows for which leaving pays, and for every number below it; None where nothing
        was measured."""
        if not self._compares:
            return None
        most = self._most[self._in_4_bit]
        return next((rows - 1 for rows in range(1, most + 1) if not self.pays(rows)), most)

    def choose(self, rows: int) -> bool:
        """Whether exits are allowed in the step that comes now, all of whose ``rows`` may leave.

        As ``pays`` says, but where the gain is not ``SURE`` from time to time the other way, since
        the way that is not taken would never be known better. The time that these steps lose, as
        measured, is kept to ``PROBE_SHARE``; one that gains is followed by another. Counters
        decide, so equal calls with equal observations choose alike. Clocks differ from rank to
        rank: with tensor parallelism nothing is learnt, and nothing is tried.
        """
        pays = self.pays(rows)
        self._probe = None
        if not self._exits.due() or not self._learns or "river" not in self._curves:
            return pays
        if pays and self.speedup(rows) >= SURE:
            return pays
        self._exits.since = 0
        self._probe = "backbone" if pays else "river"
        return not pays

    def try_drafts(self, rows: int, added: int, exact: bool) -> bool:
        """Whether ``added`` tokens are drafted for the next step, of ``rows`` otherwise, though
        that does not seem to pay.

        Paced as in ``choose``: drafts that a busy moment or long texts have made dear come back.
        """
        if not self._drafts.due() or not self._learns:
            return False
        self._drafts.since = 0
        self._drafts.lose(self.verifying(rows + added, exact) - self.verifying(rows, exact))
        self._drafting = True
        return True

    def describe(self, now: float) -> dict[str, Any]:
        """For operators: of each kind milliseconds by rows, where they are from, how old they are.

        Args:
            now: seconds since the epoch.
        """
        return {
            kind: {
                "ms": {str(rows): round(1e3 * curve(rows), 2) for rows in curve.rows},
                "from": self._origin[kind][0],
                "age_seconds": round(max(0.0, now - self._origin[kind][1]), 1),
            }
            for kind, curve in self._curves.items()
        }

    def crossover(self) -> dict[str, Any]:
        """For operators: up to how many rows leaving pays."""
        rows = self._curves[self._in_4_bit].rows if self._compares else ()
        return {
            "pays_up_to_rows": self.max_rows,
            "speedup_by_rows": {str(r): round(self.speedup(r), 2) for r in rows},
        }

    @property
    def file_name(self) -> str:
        """Under which curves with this key are saved in a folder."""
        key = json.dumps(self._identity, sort_keys=True)
        return f"costs-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"

    @property
    def _in_4_bit(self) -> Kind:
        return "river" if "river" in self._curves else "draft"

    @property
    def _compares(self) -> bool:
        return self._curves.keys() >= {"backbone", self._in_4_bit}

    @property
    def _identity(self) -> dict[str, str | int]:
        return {**machine(), **self._key}

    def save(self, path: Path) -> bool:
        """Keep the curves for the next start; False, with a line in the log, where that fails."""
        curves = {
            kind: {
                "most": self._most[kind],
                "seconds": {str(rows): curve(rows) for rows in curve.rows},
            }
            for kind, curve in self._curves.items()
        }
        at = min((at for _, at in self._origin.values()), default=self._now())
        data = {"key": self._identity, "at": at, "curves": curves}
        try:
            write_whole(path, json.dumps(data, indent=1).encode())
        except OSError as error:
            logger.debug("River: cannot save what steps cost in '%s': %s", path, error)
            return False
        return True

    def load(self, path: Path) -> bool:
        """Take the curves that an earlier start has saved.

        Returns:
            False where there are none, or the file is damaged or does not fit; then what was known
            stays.
        """
        try:
            found = _Saved.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (OSError, ValidationError) as error:
            why = str(error) if isinstance(error, OSError) else describe_errors(error, _Saved)
            logger.warning("River: measuring again, '%s' cannot be used: %s", path, why)
            return False
        if found.key != self._identity:
            logger.debug("River: '%s' is of another machine or model", path)
            return False
        points = {kind: curve.seconds for kind, curve in found.curves.items()}
        most = {kind: curve.most for kind, curve in found.curves.items()}
        self._take(points, most, "an earlier start", found.at)
        return True

    def _take(
        self,
        points: Mapping[Kind, Mapping[int, float]],
        most: Mapping[Kind, int],
        origin: str,
        at: float,
    ) -> None:
        # In doubt the river is on: what it really costs is then seen at every step.
        self._curves = {k: CostCurve(p, dear=k == "backbone") for k, p in points.items()}
        self._most = {kind: most[kind] for kind in points}
        self._origin = dict.fromkeys(points, (origin, at))
        self._seen = dict.fromkeys(points, self._steps)

    def _pay(self, kind: Kind, rows: int, seconds: float) -> None:
        """Account for a step: one that was run the other way, or one that earns the next such."""
        if kind != self._probe:
            self._exits.earn(seconds)
            return
        self._probe = None
        usual = self._curves["river" if kind == "backbone" else "backbone"](rows)
        self._exits.lose(seconds - usual)
        if seconds * PAYS <= usual:
            self._exits.since = PROBE_EVERY


def machine() -> dict[str, str | int]:
    """The CPU, and how many of them this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    said = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")][:1]
    # On aarch64 a CPU has numbers in place of a name.
    said = said or sorted({line for line in lines if line.startswith(("CPU impl", "CPU part"))})
    return {"cpu": ", ".join(said) or platform.machine(), "cpus": len(os.sched_getaffinity(0))}


def out_of_line(found: Mapping[Kind, Mapping[int, float]]) -> frozenset[int]:
    """Rows for which the ratio of two kinds is above, or below, that of fewer and that of more.

    Args:
        found: seconds by rows of each kind.
    """
    backbone = found.get("backbone", {})
    rows_of = []
    for curve in found.values():
        rows = sorted(set(curve) & set(backbone))
        ratio = [curve[r] / backbone[r] for r in rows]
        for i in range(1, len(rows) - 1):
            below, above = sorted((ratio[i - 1], ratio[i + 1]))
            if ratio[i] > LINE * above or LINE * ratio[i] < below:
                rows_of.append(rows[i])
    return frozenset(rows_of)


def _lower_quartile(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=4, method="inclusive")[0]
