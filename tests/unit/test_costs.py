"""What passes cost and whether exits pay, on a made-up machine whose clock only passes move."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from river_vllm import costs as module
from river_vllm.costs import (
    PAYS,
    PROBE_SHARE,
    REPEATS,
    ROWS,
    SHARED,
    STALE,
    CostCurve,
    Costs,
    Kind,
    machine,
)
from river_vllm.modes.verified.depth import best_depth

Truth = Mapping[Kind, Callable[[int], float]]
Wrong = Mapping[tuple[Kind, int], Mapping[int, float]]
"""By kind and rows, then by repeat: so many times as long."""
EVERY = range(REPEATS)

TRUTHS: dict[str, Truth] = {
    "the weights' bytes decide": {
        "backbone": lambda r: 0.058 + 0.0005 * r,
        "river": lambda r: 0.016 + 0.0011 * r,
    },
    "a whole row each": {
        "backbone": lambda r: 0.015 + 0.045 * r,
        "river": lambda r: 0.012 + 0.014 * r,
    },
    "it pays up to eight": {
        "backbone": lambda r: 0.050 + 0.0004 * r,
        "river": lambda r: 0.015 + 0.0034 * r,
    },
    "it never pays": {
        "backbone": lambda r: 0.020 + 0.001 * r,
        "river": lambda r: 0.030 + 0.002 * r,
    },
}
PAYING: Truth = {"backbone": lambda r: 0.058 + 0.0005 * r, "river": lambda r: 0.030 + 0.001 * r}


class Machine:
    """Passes that take as long as ``truth`` says."""

    def __init__(self, truth: Truth, wrong: Wrong | None = None) -> None:
        self.now = 0.0
        self.ran: list[tuple[Kind, int]] = []
        self._truth = truth
        self._wrong = wrong or {}

    def clock(self) -> float:
        return self.now

    def runs(self) -> dict[Kind, Callable[[int], object]]:
        return {kind: lambda rows, kind=kind: self._run(kind, rows) for kind in self._truth}

    def _run(self, kind: Kind, rows: int) -> None:
        turn = self.ran.count((kind, rows)) - 1
        self.ran.append((kind, rows))
        # The first pass of a shape prepares later ones.
        factor = self._wrong.get((kind, rows), {}).get(turn, 1.0) if turn >= 0 else 100.0
        self.now += self._truth[kind](rows) * factor


def measured(truth: Truth, most: int = 32, wrong: Wrong | None = None, **options: Any) -> Costs:
    made = Machine(truth, wrong)
    costs = Costs(most=dict.fromkeys(truth, most), clock=made.clock, **options)
    costs.measure(made.runs())
    return costs


class Server:
    """Decode steps one after the other, as the runner makes them."""

    def __init__(self, truth: Truth, costs: Costs | None = None) -> None:
        self.truth = truth
        self.costs = measured(truth) if costs is None else costs
        self.seconds = 0.0

    def run(
        self, steps: int, rows: int = 1, load: Mapping[Kind, float] | None = None
    ) -> list[bool]:
        """Whether exits were allowed, by step; ``load``: how many times as long each kind takes."""
        chosen = []
        for _ in range(steps):
            river = self.costs.choose(rows)
            kind: Kind = "river" if river else "backbone"
            seconds = self.truth[kind](rows) * (load or {}).get(kind, 1.0)
            self.costs.observe(kind, rows, seconds)
            self.seconds += seconds
            chosen.append(river)
        return chosen


def share(chosen: list[bool]) -> float:
    return sum(chosen) / len(chosen)


def test_a_curve_is_straight_between_points_and_beyond_them() -> None:
    curve = CostCurve({4: 0.8, 2: 0.6, 16: 2.0})
    found = [curve(rows) for rows in (1, 2, 3, 4, 10, 16, 20)]
    assert found == pytest.approx([0.6, 0.6, 0.7, 0.8, 1.4, 2.0, 2.4])
    assert CostCurve({2: 0.2, 4: 0.45})(8) == pytest.approx(0.9), "a row's share at most"
    assert CostCurve({1: 0.2})(6) == pytest.approx(1.2)


@pytest.mark.parametrize("seed", range(50))
def test_a_curve_never_falls_whatever_was_timed_and_observed(seed: int) -> None:
    dice = random.Random(seed)
    points = dice.sample(range(1, 65), dice.randint(1, 8))
    curve = CostCurve({rows: dice.uniform(0.001, 1.0) for rows in points})
    for step in range(dice.randint(0, 40)):
        curve.observe(dice.randint(1, 80), 10 ** dice.uniform(-4, 1), step)
    found = [curve(rows) for rows in range(1, 100)]
    assert all(low <= high + 1e-12 for low, high in itertools.pairwise(found)) and found[0] > 0


@pytest.mark.parametrize("rows", [1, 3, 8, 20, 40])
@pytest.mark.parametrize("change", [0.3, 3.0])
def test_a_curve_follows_real_passes(rows: int, change: float) -> None:
    """Also where few rows come to take longer than many did at the start."""
    curve = CostCurve({r: 1.0 + 0.01 * r for r in ROWS})
    wanted = change * curve(rows)
    for step in range(200):
        curve.observe(rows, wanted, step)
    assert curve(rows) == pytest.approx(wanted, rel=0.02)


def test_a_point_that_no_pass_comes_near_fades() -> None:
    """Passes over eight rows came at a busy moment, and none since."""
    curve = CostCurve({r: 1.0 + 0.1 * r for r in ROWS})
    for step in range(100):
        curve.observe(8, 3 * 1.8, step)
    assert curve(8) > 5.0
    assert curve(1) < 1.6, "they say less about one row"
    for step in range(100, 2000):
        curve.observe(1, 1.1, step)
    assert curve(8) == pytest.approx(1.8, rel=0.02)


def test_each_kind_is_timed_at_the_rows_it_can_have_by_turns() -> None:
    made = Machine(PAYING)
    costs = Costs(most={"backbone": 8, "river": 3}, clock=made.clock)
    costs.measure(made.runs())
    one_round: list[tuple[Kind, int]] = [
        *(("backbone", 1), ("river", 1), ("backbone", 2), ("river", 2)),
        *(("backbone", 4), ("backbone", 8)),
    ]
    warm = [point for point in one_round for _ in range(2)]
    assert made.ran == warm + one_round * (REPEATS - 1)
    for kind, rows in one_round:
        assert costs.seconds(kind, rows) == pytest.approx(PAYING[kind](rows))
    assert costs.max_rows == 3


@pytest.mark.parametrize("busy", [1.0, 3.0])
def test_where_rows_cost_in_proportion_large_passes_are_not_run(busy: float) -> None:
    """As on a CPU without bf16 instructions: a start is not to wait for half a minute's pass."""
    slow: Truth = {"backbone": lambda r: 0.15 + 0.12 * r, "river": lambda r: 0.03 + 0.002 * r}
    made = Machine(slow, {("backbone", 4): {0: busy}})
    costs = Costs(most={"backbone": 32, "river": 32}, clock=made.clock)
    costs.measure(made.runs())
    assert {rows for kind, rows in made.ran if kind == "backbone"} == {1, 2, 4}
    assert {rows for kind, rows in made.ran if kind == "river"} == set(ROWS)
    assert costs.seconds("backbone", 160) == pytest.approx(slow["backbone"](160))


def test_a_busy_moment_at_start_does_not_turn_the_river_off() -> None:
    """Speed-ups as they were once measured beside another job, at every repeat."""
    speedups = {1: 1.03, 2: 0.47, 4: 3.5, 8: 2.05, 16: 1.58, 32: 1.6}
    truth: Truth = {"backbone": lambda r: 0.058, "river": lambda r: 0.058 / speedups[r]}
    costs = measured(truth)
    assert costs.max_rows == 32 and all(costs.pays(rows) for rows in range(1, 33))


@pytest.mark.parametrize("turn", EVERY)
@pytest.mark.parametrize("name", TRUTHS)
def test_no_single_timing_changes_a_decision(name: str, turn: int) -> None:
    truth = TRUTHS[name]
    right = measured(truth)
    for kind, rows, factor in itertools.product(truth, ROWS, (0.1, 10.0)):
        wrong = {(kind, rows): {turn: factor}}
        found = measured(truth, wrong=wrong)
        assert found.max_rows == right.max_rows, wrong
        assert found.speedup(5) == pytest.approx(right.speedup(5)), wrong


@pytest.mark.parametrize("most", [1, 4])
@pytest.mark.parametrize("kind", ["backbone", "river"])
@pytest.mark.parametrize("name", TRUTHS)
def test_where_every_repeat_was_wrong_real_steps_put_it_right(
    name: str, kind: Kind, most: int
) -> None:
    truth = TRUTHS[name]
    for rows, factor in itertools.product((r for r in ROWS if r <= most), (0.1, 10.0)):
        wrong = {(kind, rows): dict.fromkeys(EVERY, factor)}
        server = Server(truth, measured(truth, most, wrong))
        pays = truth["backbone"](rows) >= PAYS * truth["river"](rows)
        # A backbone that seems slow makes exits sure to pay.
        server.run(STALE + 800 if not pays and kind == "backbone" else 800, rows)
        assert abs(share(server.run(100, rows)) - pays) < 0.05, wrong


def test_exits_pay_from_a_gain_beyond_the_noise() -> None:
    assert not Costs.fixed({"backbone": {1: 1.03}, "river": {1: 1.0}}).pays(1)
    assert Costs.fixed({"backbone": {1: 1.06}, "river": {1: 1.0}}).pays(1)


def test_up_to_how_many_rows_exits_pay_is_said_for_operators() -> None:
    costs = measured(TRUTHS["it pays up to eight"], 16)
    found = costs.crossover()
    assert 8 <= costs.max_rows < 16 and found["pays_up_to_rows"] == costs.max_rows
    assert found["speedup_by_rows"]["1"] == round(0.0504 / 0.0184, 2)
    assert list(found["speedup_by_rows"]) == ["1", "2", "4", "8", "16"]
    assert measured(TRUTHS["it never pays"]).max_rows == 0


def test_without_measurements_nothing_speaks_against_exits() -> None:
    costs = Costs()
    costs.observe("river", 1, 0.1)
    assert costs.pays(3) and all(costs.choose(3) for _ in range(200))
    assert costs.crossover() == {"pays_up_to_rows": None, "speedup_by_rows": {}}
    assert costs.describe(0.0) == {}
    with pytest.raises(KeyError):
        costs.seconds("river", 1)


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("before", [1, 1000])
def test_exits_stop_under_a_load_that_makes_them_slow_and_come_back(rows: int, before: int) -> None:
    server = Server(PAYING)
    assert share(server.run(before, rows)) > 0.97
    assert share(server.run(300, rows, {"river": 3.0})[-150:]) < 0.05
    assert share(server.run(2000, rows, {"river": 3.0})) < 0.05
    assert share(server.run(400, rows)[-150:]) > 0.95


def test_a_load_that_makes_everything_slower_does_not_stop_exits() -> None:
    server = Server(PAYING)
    busy = {"backbone": 3.0, "river": 3.0}
    assert share(server.run(1000, load=busy)) > 0.9
    assert share(server.run(1000)) > 0.9


@pytest.mark.parametrize(("steps", "factor"), [(1, 0.01), (1, 0.1), (1, 100.0), (12, 5.0)])
def test_a_few_slow_or_fast_steps_decide_nothing(steps: int, factor: float) -> None:
    server = Server(PAYING)
    for _ in range(20 if steps == 1 else 1):
        assert share(server.run(40)) > 0.95
        server.run(steps, load={"backbone": factor if steps == 1 else 1.0, "river": factor})
    assert share(server.run(100)) > 0.95


@pytest.mark.parametrize("name", TRUTHS)
@pytest.mark.parametrize("rows", [1, 6, 32])
def test_probes_cost_one_percent_of_the_time(name: str, rows: int) -> None:
    truth = TRUTHS[name]
    server, steps = Server(truth), 5000
    chosen = server.run(steps, rows)
    times = [truth[kind](rows) for kind in ("river", "backbone")]
    assert chosen.count(not server.costs.pays(rows)) <= steps / 50
    # The last of them on credit.
    worst = PAYS if max(times) < PAYS * min(times) else 1.0
    assert server.seconds <= steps * min(times) * worst * (1 + PROBE_SHARE) + max(times)


def test_a_probe_that_leaves_late_is_paid_for() -> None:
    """No curve learns of it."""
    costs = measured({"backbone": lambda r: 0.05, "river": lambda r: 0.06})
    probes = 0
    for _ in range(1000):
        if costs.choose(1):
            probes += 1
        else:
            costs.observe("backbone", 1, 0.05)
    # Each may have lost as much as a step takes.
    assert 1 <= probes <= 1 + PROBE_SHARE * 1000


def test_a_sure_gain_is_probed_once_in_a_long_while() -> None:
    """Equal requests then have equal answers; but a backbone that has become fast is found out."""
    server = Server({"backbone": lambda r: 1.0, "river": lambda r: 0.5})
    assert all(server.run(STALE - 1))
    assert server.run(STALE).count(False) == 1
    fast = {"backbone": 0.4}
    server.run(STALE + 200, load=fast)
    assert share(server.run(100, load=fast)) < 0.05


def test_fixed_costs_neither_change_nor_probe() -> None:
    costs = Costs.fixed({"backbone": {1: 0.05}, "river": {1: 0.048}, "draft": {1: 0.1}})
    assert not any(Server(PAYING, costs).run(1000, load={"river": 50.0}))
    assert not any(costs.try_drafts(1, 1, False) for _ in range(1000))
    assert costs.seconds("river", 1) == 0.048


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_what_no_pass_can_take_is_not_learnt(seconds: float) -> None:
    costs = measured(PAYING)
    before = costs.describe(0.0)
    costs.observe("river", 1, seconds)
    costs.observe("river", 0, 1.0)
    assert costs.describe(0.0) == before


@pytest.mark.parametrize("dear", [True, False])
def test_drafts_that_seemed_too_dear_come_back(dear: bool) -> None:
    """And where they are dear, probing them costs its share of the time."""
    draft, step = 0.1 if dear else 0.025, 0.1
    costs = measured({"draft": lambda r: 0.1, "backbone": lambda r: 0.1 + 0.001 * r})
    seconds = lost = 0.0
    for _ in range(5000):
        if best_depth(costs, [0.85], [4]).price:
            break
        if costs.try_drafts(1, 1, False):
            costs.observe("draft", 1, draft)
            lost += draft
        costs.observe("backbone", 1, step)
        seconds += step
    assert bool(best_depth(costs, [0.85], [4]).price) is not dear
    assert 0 < lost <= PROBE_SHARE * seconds + draft


def test_ranks_decide_alike_and_learn_from_the_first() -> None:
    """Each has a clock of its own; the second one's machine is five times as slow in 4 bit."""
    sent: list[Any] = []
    meetings: list[int] = []

    def of_first(value: Any) -> Any:
        sent.append(value)
        return value

    def of_second(value: Any) -> Any:
        meetings.append(len(value))
        return sent.pop(0)

    ranks = [measured(PAYING, share=lambda value: value) for _ in range(2)]
    ranks[0]._share, ranks[1]._share = of_first, of_second
    loads = [{"river": 1.0}, {"river": 5.0}]
    servers = [Server(PAYING, costs) for costs in ranks]
    for _ in range(40):
        first, second = (s.run(50, load=load) for s, load in zip(servers, loads, strict=True))
        assert first == second and all(first)
    loads[0] = {"river": 5.0}
    for _ in range(40):
        first, second = (s.run(50, load=load) for s, load in zip(servers, loads, strict=True))
        assert first == second
    assert share(first) < 0.05
    assert len(meetings) == 80 * 50 // SHARED


KEY: dict[str, str | int] = {"model": "tiny", "layers": 12, "isa": "avx2", "threads": 2}


def saved(folder: Path) -> tuple[Costs, Path]:
    costs = measured(PAYING, 8, key=KEY)
    path = folder / "river" / costs.file_name
    assert costs.save(path)
    return costs, path


def empty(key: Mapping[str, str | int] = KEY, most: int = 8) -> Costs:
    return Costs(key, {"backbone": most, "river": most})


def test_the_next_start_finds_the_curves(tmp_path: Path, warnings: list[str]) -> None:
    before, path = saved(tmp_path)
    after = empty(dict(reversed(KEY.items())))
    assert after.file_name == path.name and after.load(path)
    assert after.crossover() == before.crossover()
    at = json.loads(path.read_text())["at"]
    found = after.describe(at + 30.0)["river"]
    assert (found["from"], found["age_seconds"]) == ("an earlier start", 30.0)
    assert found["ms"] == before.describe(0.0)["river"]["ms"]
    assert not empty().load(tmp_path / "none.json"), "what is not there is measured without a word"
    assert warnings == []


def test_another_key_has_another_file_and_does_not_take_this_one(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = saved(tmp_path)
    others = [empty({**KEY, name: 99}) for name in KEY] + [empty({**KEY, "more": 1}), empty({})]
    others.append(empty(most=4))
    monkeypatch.setattr(module, "machine", lambda: {**machine(), "cpu": "another"})
    others.append(empty())
    for other in others:
        assert other.file_name != path.name
        assert not other.load(path) and other.describe(0.0) == {}
    assert warnings == []


def test_a_file_of_a_busy_start_is_not_used_again(tmp_path: Path) -> None:
    """Real steps take less than half its time; slower ones, as of long contexts, prove nothing."""
    for factor, stays in ((4.0, True), (0.7, True), (0.4, False)):
        _, path = saved(tmp_path)
        costs = empty()
        assert costs.load(path)
        Server(PAYING, costs).run(200, load={"backbone": factor, "river": factor})
        assert path.exists() is stays


def damage(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    def changed(text: bytes) -> bytes:
        data = json.loads(text)
        change(data)
        return json.dumps(data).encode()

    return changed


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: b"[" * 100_000,
        damage(lambda data: data.pop("curves")),
        damage(lambda data: data["curves"].update(river={})),
        damage(lambda data: data["curves"]["river"].update({"1": 0.0})),
        damage(lambda data: data["curves"]["river"].update({"1": "fast"})),
    ],
)
def test_a_damaged_file_is_said_and_not_taken(
    tmp_path: Path, warnings: list[str], change: Callable[[bytes], bytes]
) -> None:
    _, path = saved(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    after = empty()
    assert not after.load(path) and after.describe(0.0) == {}
    assert len(warnings) == 1 and str(path) in warnings[0] and "\n" not in warnings[0]


def test_cpus_without_a_name_have_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """aarch64's /proc/cpuinfo."""
    core = "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {}\n\n"
    names = []
    for parts in (["0xd0c"], ["0xd0c", "0xd0c"], ["0xd40"], ["0xd03", "0xd09"]):
        text = "".join(core.format(part) for part in parts)
        monkeypatch.setattr(Path, "read_text", lambda *_, text=text, **__: text)
        names.append(machine()["cpu"])
    assert names[0] == names[1] and len(set(names)) == 3
