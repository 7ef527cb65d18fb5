"""From how many rows on the river stops paying, on products of known speed."""

from __future__ import annotations

import pytest
import torch

from river_vllm.kernels import crossover, timing
from river_vllm.kernels.crossover import Crossover
from tests.unit.kernels.support import Clock

INPUT = (8, torch.float32, torch.device("cpu"))


class Products(Clock):
    """Products of known speed."""

    def takes(self, base: float, per_row: float):
        def product(x: torch.Tensor) -> torch.Tensor:
            self.now += base + per_row * x.shape[0]
            return x

        return product


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Products:
    clock = Products()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_rows_up_to_which_it_pays(clock: Products) -> None:
    found = Crossover()
    found.measure(*INPUT, backbone=clock.takes(4.0, 0.0), river=clock.takes(1.0, 0.25))
    assert found.speedup[1] == pytest.approx(4 / 1.25)
    assert found.speedup[8] == pytest.approx(4 / 3)
    assert found.rows == 8


def test_projections_of_a_layer_add_up(clock: Products) -> None:
    found = Crossover()
    found.measure(*INPUT, backbone=clock.takes(4.0, 0.0), river=clock.takes(1.0, 0.25))
    found.measure(*INPUT, backbone=clock.takes(10.0, 0.0), river=clock.takes(1.0, 0.0))
    assert found.speedup[16] == pytest.approx(14 / 6)
    assert found.rows == 32


def test_it_may_never_pay(clock: Products) -> None:
    found = Crossover()
    found.measure(*INPUT, backbone=clock.takes(1.0, 0.0), river=clock.takes(2.0, 0.0))
    assert found.rows == 0


def test_a_gain_behind_a_loss_does_not_count(clock: Products) -> None:
    found = Crossover()

    def river(x: torch.Tensor) -> torch.Tensor:
        clock.now += 5.0 if x.shape[0] == 4 else 0.5
        return x

    found.measure(*INPUT, backbone=clock.takes(1.0, 0.0), river=river)
    assert found.rows == 2


def test_a_busy_moment_does_not_hide_what_more_rows_gain(clock: Products) -> None:
    found = Crossover()

    def river(x: torch.Tensor) -> torch.Tensor:
        clock.now += {1: 0.99, 16: 0.98, 32: 1.2}.get(x.shape[0], 0.8)
        return x

    found.measure(*INPUT, backbone=clock.takes(1.0, 0.0), river=river)
    assert found.rows == 8


def test_whole_steps_replace_products(clock: Products) -> None:
    found = Crossover()
    found.measure(*INPUT, backbone=clock.takes(9.0, 0.0), river=clock.takes(1.0, 0.0))
    assert found.rows == 32
    ran = []

    def step(base: float, per_row: float):
        def run(rows: int) -> None:
            ran.append(rows)
            clock.now += base + per_row * rows

        return run

    found.measure_steps(backbone=step(10.0, 0.0), river=step(4.0, 1.0), most=8)
    assert found.speedup == {rows: pytest.approx(10 / (4 + rows)) for rows in (1, 2, 4, 8)}
    assert found.rows == 4
    assert ran.count(8) == 2 * (crossover.STEP_REPEATS + 1)


def test_the_first_step_of_a_shape_does_not_count(clock: Products) -> None:
    found = Crossover()
    seen: set[int] = set()

    def river(rows: int) -> None:
        clock.now += 1.0 if rows in seen else 100.0
        seen.add(rows)

    def backbone(rows: int) -> None:
        clock.now += 2.0

    found.measure_steps(backbone, river, most=2)
    assert found.speedup == {1: 2.0, 2: 2.0}


def test_a_gain_within_the_noise_does_not_pay(clock: Products) -> None:
    found = Crossover()
    found.measure(*INPUT, backbone=clock.takes(1.03, 0.0), river=clock.takes(1.0, 0.0))
    assert found.rows == 0
