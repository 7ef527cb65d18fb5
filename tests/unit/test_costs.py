"""What passes cost and whether exits pay, on a made-up machine whose clock only passes move."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from river_vllm import costs as module
from river_vllm.costs import (
    PAYS,
    PROBE_EVERY,
    PROBE_SHARE,
    REPEATS,
    ROWS,
    Costs,
    Kind,
    machine,
    out_of_line,
)
from river_vllm.verify.depth import best_depth

Truth = Mapping[Kind, Callable[[int], float]]

TRUTHS: dict[str, Truth] = {
    "the weights' bytes decide": {
        "backbone": lambda r: 0.058 + 0.0005 * r,
        "river": lambda r: 0.016 + 0.0011 * r,
    },
    "a whole row each": {
        "backbone": lambda r: 0.015 + 0.045 * r,
        "river": lambda r: 0.012 + 0.014 * r,
    },
    "bytes, then arithmetic": {
        "backbone": lambda r: max(0.040, 0.0025 * r),
        "river": lambda r: max(0.014, 0.0018 * r),
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


class Machine:
    """Passes that take as long as ``truth`` says.

    Args:
        wrong: the n-th timed run of a pass over so many rows (from 0; None: each) takes so many
            times as long.
    """

    def __init__(
        self, truth: Truth, wrong: Mapping[tuple[Kind, int, int | None], float] | None = None
    ) -> None:
        self.now = 0.0
        self.ran: list[tuple[Kind, int]] = []
        self._truth = truth
        self._wrong = wrong or {}
        self._runs: Counter[tuple[Kind, int]] = Counter()

    def clock(self) -> float:
        return self.now

    def passes(self) -> dict[Kind, Callable[[int], object]]:
        return {kind: lambda rows, kind=kind: self._run(kind, rows) for kind in self._truth}

    def _run(self, kind: Kind, rows: int) -> None:
        turn = self._runs[kind, rows] - 1
        self._runs[kind, rows] += 1
        factor = self._wrong.get((kind, rows, None), self._wrong.get((kind, rows, turn), 1.0))
        self.ran.append((kind, rows))
        # The first run of a shape makes what later ones find.
        self.now += self._truth[kind](rows) * (factor if turn >= 0 else 100.0)


def measured(
    truth: Truth,
    most: int = 32,
    wrong: Mapping[tuple[Kind, int, int | None], float] | None = None,
) -> Costs:
    made = Machine(truth, wrong)
    costs = Costs(clock=made.clock, now=lambda: 0.0)
    costs.measure(made.passes(), dict.fromkeys(truth, most))
    return costs


def true_speedup(truth: Truth, rows: int) -> float:
    return truth["backbone"](rows) / truth["river"](rows)


def of_speedups(speedups: Mapping[int, float], backbone: Mapping[int, float]) -> Truth:
    return {"backbone": lambda r: backbone[r], "river": lambda r: backbone[r] / speedups[r]}


# Measuring


def test_each_kind_is_timed_at_the_rows_it_can_have_by_turns() -> None:
    truth = TRUTHS["the weights' bytes decide"]
    made = Machine(truth)
    costs = Costs(clock=made.clock)
    costs.measure(made.passes(), {"backbone": 8, "river": 3})
    one_round: list[tuple[Kind, int]] = [
        *(("backbone", 1), ("river", 1), ("backbone", 2), ("river", 2)),
        *(("backbone", 4), ("backbone", 8)),
    ]
    warm = [point for point in one_round for _ in range(2)]
    assert made.ran == warm + one_round * (REPEATS - 1)
    for kind, rows in one_round:
        assert costs.seconds(kind, rows) == pytest.approx(truth[kind](rows))
    assert costs.max_rows == 3


def test_where_rows_cost_in_proportion_few_are_measured() -> None:
    """As on a CPU without bf16 instructions: a start is not to wait for half a minute's pass."""
    slow: Truth = {"backbone": lambda r: 0.15 + 0.12 * r, "river": lambda r: 0.03 + 0.002 * r}
    made = Machine(slow)
    costs = Costs(clock=made.clock)
    costs.measure(made.passes(), {"backbone": 32, "river": 32})
    runs = Counter(made.ran)
    assert {rows for kind, rows in runs if kind == "backbone"} == {1, 2, 4}
    assert {rows for kind, rows in runs if kind == "river"} == set(ROWS)
    assert (runs["backbone", 1], runs["backbone", 4], runs["river", 32]) == (6, 7, 6)
    for rows in (1, 8, 32, 160):
        assert costs.seconds("backbone", rows) == pytest.approx(slow["backbone"](rows))


def test_a_busy_moment_ends_no_curve() -> None:
    flat: Truth = {"backbone": lambda r: 0.4 + 0.01 * r}
    made = Machine(flat, {("backbone", 4, 0): 3.0})
    costs = Costs(clock=made.clock)
    costs.measure(made.passes(), {"backbone": 32})
    assert {rows for _, rows in made.ran} == set(ROWS)
    assert costs.seconds("backbone", 4) == pytest.approx(0.44)


def test_a_timing_that_contradicts_its_neighbours_is_measured_again() -> None:
    """A busy moment that lasts through every repeat of one point, and ends then."""
    truth = TRUTHS["the weights' bytes decide"]
    made = Machine(truth, {("river", 4, turn): 5.0 for turn in range(REPEATS)})
    costs = Costs(clock=made.clock)
    costs.measure(made.passes(), {"backbone": 32, "river": 32})
    assert costs.seconds("river", 4) == pytest.approx(truth["river"](4))
    assert Counter(made.ran)["river", 4] == 1 + 2 * REPEATS
    # Both kinds, so that they meet the same load; nobody else.
    assert Counter(made.ran)["backbone", 4] == 1 + 2 * REPEATS
    assert Counter(made.ran)["river", 8] == 1 + REPEATS


def test_a_ratio_out_of_line_is_measured_again() -> None:
    """No rule is broken: 1.6 times as long is what more rows might take."""
    steep: Truth = {"backbone": lambda r: 0.01 + 0.01 * r, "river": lambda r: 0.005 + 0.005 * r}
    made = Machine(steep, {("river", 4, turn): 1.5 for turn in range(REPEATS)})
    costs = Costs(clock=made.clock)
    costs.measure(made.passes(), {"backbone": 32, "river": 32})
    assert costs.seconds("river", 4) == pytest.approx(0.025)


def test_out_of_line() -> None:
    backbone = dict.fromkeys((1, 2, 4, 8), 1.0)
    rising = {1: 0.2, 2: 0.4, 4: 0.8, 8: 0.9}
    assert out_of_line({"backbone": backbone, "river": rising}) == set()
    assert out_of_line({"backbone": backbone, "river": {**rising, 2: 1.2}}) == {2}
    # Nobody knows which of two neighbours it is.
    assert out_of_line({"backbone": backbone, "draft": {**rising, 4: 0.3}}) == {2, 4}
    assert out_of_line({"backbone": backbone}) == set()
    assert out_of_line({}) == set()


# One wrong timing


@pytest.mark.parametrize("per_row", [0.0, 0.0005, 0.002])
def test_a_busy_moment_at_start_does_not_turn_the_river_off(per_row: float) -> None:
    """Speed-ups as they were once measured beside another job, at every repeat."""
    speedups = {1: 1.03, 2: 0.47, 4: 3.5, 8: 2.05, 16: 1.58, 32: 1.6}
    backbone = {rows: 0.058 + per_row * rows for rows in ROWS}
    costs = measured(of_speedups(speedups, backbone))
    assert costs.max_rows == 32
    assert all(costs.pays(rows) for rows in range(1, 33))
    # The same where it is the backbone's times that the moment has changed.
    river = {rows: 0.016 + 0.0005 * rows for rows in ROWS}
    costs = measured(
        {"river": lambda r: river[r], "backbone": lambda r: river[r] * speedups[r]},
    )
    assert costs.max_rows == 32


@pytest.mark.parametrize("turn", [*range(REPEATS), None])
@pytest.mark.parametrize("most", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("name", TRUTHS)
def test_no_single_timing_turns_the_river_off_where_it_pays(
    name: str, most: int, turn: int | None
) -> None:
    """Off by ten times either way: one repeat, or (two points at least) all of them."""
    if turn is None and most == 1:
        pytest.skip("nothing else is known")
    truth = TRUTHS[name]
    for kind in truth:
        for rows in (r for r in ROWS if r <= most):
            for factor in (0.1, 10.0):
                costs = measured(truth, most, {(kind, rows, turn): factor})
                for r in (r for r in ROWS if r <= most):
                    speedup = true_speedup(truth, r)
                    case = f"{kind} x{factor} at {rows}: {r} rows, {costs.crossover()}"
                    assert costs.pays(r) or speedup < PAYS, case
                    # Where it cannot be told, the river is on, and is watched.
                    if turn is not None or (most > 2 and r != rows):
                        assert not costs.pays(r) or speedup > 1 / PAYS, case


# Whether it pays


def test_a_gain_within_the_noise_does_not_pay() -> None:
    assert not Costs.fixed({"backbone": {1: 1.03}, "river": {1: 1.0}}).pays(1)
    assert Costs.fixed({"backbone": {1: 1.06}, "river": {1: 1.0}}).pays(1)


def test_what_is_neither_gain_nor_loss_asks_more_rows() -> None:
    backbone = {1: 1.0, 2: 1.0, 4: 1.2}
    assert Costs.fixed({"backbone": backbone, "river": {1: 0.98, 2: 0.98, 4: 1.0}}).max_rows == 4
    assert Costs.fixed({"backbone": backbone, "river": {1: 0.98, 2: 0.98, 4: 1.5}}).max_rows == 0
    loss = Costs.fixed({"backbone": backbone, "river": {1: 1.1, 2: 1.1, 4: 1.1}})
    assert loss.pays(4) and not loss.pays(1)


def test_up_to_how_many_rows_is_said_for_operators() -> None:
    costs = measured(TRUTHS["it pays up to eight"], 16)
    assert 8 <= costs.max_rows < 16
    found = costs.crossover()
    assert found["pays_up_to_rows"] == costs.max_rows
    assert found["speedup_by_rows"]["1"] == round(0.0504 / 0.0184, 2)
    assert list(found["speedup_by_rows"]) == ["1", "2", "4", "8", "16"]


def test_drafts_stand_for_the_river_where_nothing_exits() -> None:
    costs = Costs.fixed({"backbone": {1: 0.9, 4: 1.0}, "draft": {1: 0.3, 4: 0.5}})
    assert costs.speedup(1) == pytest.approx(3.0)
    assert costs.max_rows == 4


def test_without_measurements_nothing_speaks_against_leaving() -> None:
    costs = Costs()
    assert costs.pays(3) and all(costs.choose(3) for _ in range(2 * PROBE_EVERY))
    assert costs.crossover() == {"pays_up_to_rows": None, "speedup_by_rows": {}}
    assert costs.describe(0.0) == {}
    with pytest.raises(KeyError):
        costs.seconds("river", 1)
    costs.observe("river", 1, 0.1)
    assert costs.describe(0.0) == {}


# Learning


class Server:
    """Decode steps one after the other, as the runner makes them."""

    def __init__(self, costs: Costs, truth: Truth) -> None:
        self.costs = costs
        self.truth = dict(truth)
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


PAYING: Truth = {"backbone": lambda r: 0.058 + 0.0005 * r, "river": lambda r: 0.030 + 0.001 * r}


def serving(truth: Truth = PAYING) -> Server:
    return Server(measured(truth), truth)


def share(chosen: list[bool]) -> float:
    return sum(chosen) / len(chosen)


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("before", [0, 1000])
def test_it_goes_off_under_a_load_that_makes_it_not_pay_and_comes_back(
    rows: int, before: int
) -> None:
    server = serving()
    assert share(server.run(before, rows) or [True]) > 0.97
    assert share(server.run(300, rows, {"river": 3.0})[-150:]) < 0.05
    assert share(server.run(2000, rows, {"river": 3.0})) < 0.05
    assert share(server.run(400, rows)[-150:]) > 0.95


def test_a_load_that_makes_everything_slower_does_not_turn_it_off_for_long() -> None:
    server = serving()
    server.run(500)
    busy = {"backbone": 3.0, "river": 3.0}
    assert share(server.run(1000, load=busy)) > 0.9
    assert share(server.run(1000)) > 0.9


@pytest.mark.parametrize("factor", [0.01, 0.1, 10.0, 100.0])
def test_single_slow_or_fast_steps_decide_nothing(factor: float) -> None:
    server = serving()
    for _ in range(20):
        assert share(server.run(40)) > 0.95
        server.run(1, load={"backbone": factor, "river": factor})


def test_a_busy_second_does_not_turn_it_off() -> None:
    server = serving()
    server.run(500)
    server.run(12, load={"river": 5.0})
    assert share(server.run(100)) > 0.95


@pytest.mark.parametrize("name", TRUTHS)
@pytest.mark.parametrize("rows", [1, 6, 32])
def test_steps_that_are_run_the_other_way_cost_little(name: str, rows: int) -> None:
    truth = TRUTHS[name]
    server, steps = serving(truth), 5000
    chosen = server.run(steps, rows)
    times = [truth[kind](rows) for kind in ("river", "backbone")]
    usual = server.costs.pays(rows)
    assert chosen.count(not usual) <= steps / PROBE_EVERY
    # Time by share, and the last of them on credit.
    assert server.seconds <= steps * min(times) * PAYS * (1 + PROBE_SHARE) + max(times)
    if abs(times[0] / times[1] - 1) > 0.1:
        assert server.seconds <= steps * min(times) * (1 + PROBE_SHARE) + max(times)


def test_a_try_that_leaves_late_is_paid_for() -> None:
    """No curve learns of it."""
    truth: Truth = {"backbone": lambda r: 0.05, "river": lambda r: 0.06}
    costs, steps = measured(truth), 20 * PROBE_EVERY
    tries = 0
    for _ in range(steps):
        if costs.choose(1):
            tries += 1
            costs.tried(1, 0.1)
        else:
            costs.observe("backbone", 1, 0.05)
    # Each loses as much as a step takes.
    assert 1 <= tries <= 1 + PROBE_SHARE * steps


def test_where_the_gain_is_sure_nothing_is_tried() -> None:
    """Equal requests then have equal answers, however many came before them."""
    server = serving({"backbone": lambda r: 1.0, "river": lambda r: 0.05})
    assert all(server.run(20_000))
    near = serving({"backbone": lambda r: 1.0, "river": lambda r: 0.9})
    assert not all(near.run(20_000))


def test_equal_observations_make_equal_decisions() -> None:
    one, other = serving(), serving()
    for load in (1.0, 3.0, 1.0):
        assert one.run(400, load={"river": load}) == other.run(400, load={"river": load})


def test_what_does_not_learn_neither_changes_nor_tries() -> None:
    costs = Costs.fixed({"backbone": {1: 0.05}, "river": {1: 0.02}})
    server = Server(costs, {"backbone": lambda r: 0.05, "river": lambda r: 0.02})
    assert share(server.run(1000, load={"river": 50.0})) == 1.0
    assert costs.seconds("river", 1) == 0.02


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_what_no_pass_can_take_is_not_learnt(seconds: float) -> None:
    costs = measured(PAYING)
    before = costs.describe(0.0)
    costs.observe("river", 1, seconds)
    costs.observe("river", 0, 1.0)
    assert costs.describe(0.0) == before


def test_drafts_age_by_steps_not_by_themselves() -> None:
    """Four of them in a step."""
    truth: Truth = {"backbone": lambda r: 0.06, "draft": lambda r: 0.01}
    costs = measured(truth, 4)
    for _ in range(200):
        for _ in range(4):
            costs.observe("draft", 1, 0.02)
        costs.observe("backbone", 4, 0.09)
    assert costs.seconds("draft", 1) == pytest.approx(0.02, rel=0.02)
    assert costs.seconds("backbone", 4) == pytest.approx(0.09, rel=0.02)


# What operators read


def test_description_says_how_much_from_where_and_how_old() -> None:
    made = Machine(PAYING)
    costs = Costs(clock=made.clock, now=lambda: 1000.0 + made.now)
    costs.measure(made.passes(), {"backbone": 2, "river": 2})
    start = 1000.0 + made.now
    found = costs.describe(start + 60)
    assert list(found) == ["backbone", "river"]
    assert found["river"] == {
        "ms": {"1": 31.0, "2": 32.0},
        "from": "measured at start",
        "age_seconds": 60.0,
    }
    made.now += 10
    costs.observe("river", 1, 0.031)
    found = costs.describe(start + 60)
    assert (found["river"]["from"], found["river"]["age_seconds"]) == ("serving", 50.0)
    assert found["backbone"]["from"] == "measured at start"
    assert json.loads(json.dumps(found)) == found


# Between two starts


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Warnings of River's; vLLM's loggers do not propagate."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    module.logger.addHandler(handler)
    yield found
    module.logger.removeHandler(handler)


KEY: dict[str, str | int] = {"model": "tiny", "layers": 12, "isa": "avx2", "threads": 2}


def saved(folder: Path) -> tuple[Costs, Path]:
    made = Machine(PAYING)
    costs = Costs(KEY, clock=made.clock, now=lambda: 1000.0)
    costs.measure(made.passes(), {"backbone": 16, "river": 8})
    path = folder / "river" / costs.file_name
    assert costs.save(path)
    return costs, path


def test_the_next_start_finds_the_curves(tmp_path: Path, lines: list[str]) -> None:
    before, path = saved(tmp_path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    after = Costs(dict(reversed(KEY.items())), now=lambda: 5000.0)
    assert after.file_name == path.name
    assert after.load(path)
    for kind, rows in (("backbone", 1), ("backbone", 16), ("river", 3), ("river", 8)):
        assert after.seconds(kind, rows) == before.seconds(kind, rows)
    assert after.crossover() == before.crossover()
    found = after.describe(1030.0)["river"]
    assert (found["from"], found["age_seconds"]) == ("an earlier start", 30.0)
    assert lines == []


def test_another_key_has_another_file_and_does_not_take_this_one(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = saved(tmp_path)
    others = [Costs({**KEY, name: 99}) for name in KEY] + [Costs({**KEY, "more": 1}), Costs()]
    monkeypatch.setattr(module, "machine", lambda: {**machine(), "cpu": "another"})
    others.append(Costs(KEY))
    for other in others:
        assert other.file_name != path.name
        assert not other.load(path)
        assert other.describe(0.0) == {}
    assert lines == []


def test_what_is_not_there_is_measured_without_a_word(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "file").touch()
    assert not Costs(KEY).load(tmp_path / "none.json")
    assert not Costs(KEY).load(tmp_path / "file" / "none.json")
    assert lines == []


def damage(change: Callable[[Any], object]) -> Callable[[str], str]:
    def changed(text: str) -> str:
        data = json.loads(text)
        change(data)
        return json.dumps(data)

    return changed


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "7",
        lambda text: "[" * 100_000,
        damage(lambda data: data.pop("curves")),
        damage(lambda data: data.pop("at")),
        damage(lambda data: data.update(at=None)),
        damage(lambda data: data.update(curves={})),
        damage(lambda data: data.update(curves=[1])),
        damage(lambda data: data["curves"].update(other=data["curves"]["river"])),
        damage(lambda data: data["curves"]["river"].pop("most")),
        damage(lambda data: data["curves"]["river"].update(most=float("inf"))),
        damage(lambda data: data["curves"]["river"].update(seconds={})),
        damage(lambda data: data["curves"]["river"].update(seconds=[0.1])),
        damage(lambda data: data["curves"]["river"]["seconds"].update({"0": 1.0})),
        damage(lambda data: data["curves"]["river"]["seconds"].update({"1": 0.0})),
        damage(lambda data: data["curves"]["river"]["seconds"].update({"1": float("nan")})),
        damage(lambda data: data["curves"]["river"]["seconds"].update({"1": float("inf")})),
        damage(lambda data: data["curves"]["river"]["seconds"].update({"1": "fast"})),
        damage(lambda data: data["curves"]["river"]["seconds"].update({"few": 1.0})),
    ],
)
def test_a_damaged_file_is_said_and_not_taken(
    tmp_path: Path, lines: list[str], change: Callable[[str], str]
) -> None:
    _, path = saved(tmp_path)
    path.write_text(change(path.read_text()))
    after = Costs(KEY)
    assert not after.load(path)
    assert after.describe(0.0) == {}
    assert len(lines) == 1 and str(path) in lines[0] and "\n" not in lines[0]


def test_bytes_that_are_no_text_are_damage(tmp_path: Path, lines: list[str]) -> None:
    _, path = saved(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    assert not Costs(KEY).load(path)
    assert len(lines) == 1


def test_a_folder_that_refuses_costs_the_file_only(tmp_path: Path, lines: list[str]) -> None:
    """A file in the folder's place stops root too."""
    costs, _ = saved(tmp_path)
    (tmp_path / "file").touch()
    assert not costs.save(tmp_path / "file" / "x.json")
    assert costs.max_rows == 8
    assert lines == []


def test_the_machine_is_named() -> None:
    assert machine()["cpu"] and int(machine()["cpus"]) >= 1


def test_cpus_without_a_name_have_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """aarch64's /proc/cpuinfo."""
    core = "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {}\n\n"
    names = []
    for parts in (["0xd0c"], ["0xd0c", "0xd0c"], ["0xd40"], ["0xd03", "0xd09"]):
        text = "".join(core.format(part) for part in parts)
        monkeypatch.setattr(Path, "read_text", lambda *_, text=text, **__: text)
        names.append(machine()["cpu"])
    assert names[0] == names[1]
    assert len(set(names)) == 3


# Drafts that do not seem to pay


@pytest.mark.parametrize("dear", [True, False])
def test_drafts_that_seemed_too_dear_come_back(dear: bool) -> None:
    """And where they are dear, looking again costs its share of the time."""
    draft, step = 0.1 if dear else 0.025, 0.1
    known: Truth = {"draft": lambda r: 0.1, "backbone": lambda r: 0.1 + 0.001 * r}
    costs = measured(known)
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


def test_no_draft_is_tried_where_nothing_is_learnt() -> None:
    costs = Costs.fixed({"draft": {1: 0.1}, "backbone": {1: 0.1}})
    assert not any(costs.try_drafts(1, 1, False) for _ in range(1000))
