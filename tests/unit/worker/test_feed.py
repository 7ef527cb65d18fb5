"""From requests' rows to units, and back to one depth per request."""

from __future__ import annotations

import pytest

from river_vllm.depths import signed_depth
from river_vllm.request import RiverSettings, TeacherForced
from river_vllm.router.batch import ExitUnit
from river_vllm.worker.feed import BatchFeed, RequestRows
from tests.unit.worker.support import NEVER, OFF, free, replay, route, rows, step

L = 12


@pytest.fixture
def feed() -> BatchFeed:
    return BatchFeed(L, "backbone")


@pytest.fixture
def sequence() -> BatchFeed:
    return BatchFeed(L, "sequence")


@pytest.mark.parametrize(
    ("count", "position", "prompt", "expected"),
    [(4, 0, 4, 4), (3, 0, 4, 3), (1, 3, 4, 1), (1, 4, 4, 0), (1, 9, 4, 0), (6, 2, 4, 2)],
)
def test_prompt_rows_come_first(count: int, position: int, prompt: int, expected: int) -> None:
    assert rows("a", count, position, prompt).prompt_rows == expected


def test_a_prompt_stays_on_the_backbone_and_its_depth_is_signed(feed: BatchFeed) -> None:
    batch = feed.begin([rows("a", 4, 0)])
    assert (batch.units, batch.num_rows) == ([], 4)
    assert feed.finish() == {"a": -L}


def test_the_chunks_of_a_prompt_are_prompt_rows_each(feed: BatchFeed) -> None:
    assert step(feed, [rows("a", 3, 0, prompt=8)]) == {"a": -L}
    assert step(feed, [rows("a", 5, 3, prompt=8)]) == {"a": -L}
    assert step(feed, [rows("a", 1, 8, prompt=8)], 5) == {"a": 5}


def test_a_decode_row_decides_for_itself(feed: BatchFeed) -> None:
    settings = RiverSettings(True, 0.25, 7)
    batch = feed.begin([rows("a", 1, 4, settings=settings)])
    assert batch.units == [ExitUnit(0, 1, 0.25, 7)]
    route(batch, 9)
    assert feed.finish() == {"a": 9}


def test_rows_of_a_mixed_step_keep_their_places(feed: BatchFeed) -> None:
    batch = feed.begin([rows("a", 1, 6), rows("b", 4, 0, start=1), rows("c", 1, 5, start=5)])
    assert batch.units == [free(0), free(5)]
    assert batch.num_rows == 6
    assert not batch.covers_all_rows
    route(batch, 3, 12)
    assert feed.finish() == {"a": 3, "b": -L, "c": 12}


@pytest.mark.parametrize("settings", [OFF, NEVER, RiverSettings(True, 0.5, L)])
def test_a_token_that_cannot_leave_is_no_unit(feed: BatchFeed, settings: RiverSettings) -> None:
    batch = feed.begin([rows("a", 1, 4, settings=settings)])
    assert batch.units == []
    assert feed.finish() == {"a": L}


def test_a_preempted_request_takes_the_depths_it_had(feed: BatchFeed) -> None:
    step(feed, [rows("a", 4, 0)])
    step(feed, [rows("a", 1, 4)], 3)
    step(feed, [rows("a", 1, 5)], 12)
    step(feed, [rows("a", 1, 6)], 5)
    # Computed again from its start, in one go, up to the token that follows.
    batch = feed.begin([rows("a", 8, 0)])
    # The second token never left, so its row belongs to no unit.
    assert batch.units == [replay(4, 3), replay(6, 5), free(7)]
    route(batch, 3, 5, 8)
    assert feed.finish() == {"a": 8}
    # The new depth is the one that is kept next time.
    assert feed.begin([rows("a", 4, 5)]).units == [replay(1, 5), replay(2, 8), free(3)]


def test_replay_in_chunks_starts_where_the_chunk_starts(feed: BatchFeed) -> None:
    step(feed, [rows("a", 4, 0)])
    for position, depth in ((4, 3), (5, 4), (6, 5)):
        step(feed, [rows("a", 1, position)], depth)
    assert feed.begin([rows("a", 5, 0)]).units == [replay(4, 3)]
    route_all = feed.begin([rows("a", 5, 0)])
    route(route_all, 3)
    assert feed.finish() == {"a": 3}
    batch = feed.begin([rows("a", 2, 5)])
    assert batch.units == [replay(0, 4), replay(1, 5)]
    route(batch, 4, 5)
    assert feed.finish() == {"a": 5}
    assert feed.begin([rows("a", 1, 7)]).units == [free(0)]


def test_replay_holds_even_for_a_request_whose_first_depth_was_below_its_minimum(
    feed: BatchFeed,
) -> None:
    step(feed, [rows("a", 1, 4, settings=RiverSettings(True, 0.5, 2))], 2)
    later = RiverSettings(True, 0.5, 6)
    assert feed.begin([rows("a", 1, 4, settings=later)]).units == [replay(0, 2)]


def test_two_requests_do_not_share_their_depths(feed: BatchFeed) -> None:
    step(feed, [rows("a", 1, 4), rows("b", 1, 4, start=1)], 3, 7)
    batch = feed.begin([rows("b", 1, 4), rows("a", 1, 4, start=1)])
    assert batch.units == [replay(0, 7), replay(1, 3)]


def test_a_request_that_has_ended_is_forgotten(feed: BatchFeed) -> None:
    step(feed, [rows("a", 1, 4), rows("b", 1, 4, start=1)], 3, 7)
    feed.forget(["a", "never-met"])
    batch = feed.begin([rows("a", 1, 4), rows("b", 1, 4, start=1)])
    assert batch.units == [free(0), replay(1, 7)]


def test_a_prompt_may_leave_together_under_sequence_prefill(sequence: BatchFeed) -> None:
    batch = sequence.begin([rows("a", 1, 5), rows("b", 4, 0, start=1)])
    assert batch.units == [free(0), ExitUnit(1, 5, 0.9, 2)]
    assert batch.covers_all_rows
    route(batch, 5, 3)
    assert sequence.finish() == {"a": 5, "b": -3}


def test_sequence_prefill_of_a_request_without_river_stays(sequence: BatchFeed) -> None:
    batch = sequence.begin(
        [rows("a", 4, 0, settings=OFF), rows("b", 4, 0, start=4, settings=NEVER)]
    )
    assert batch.units == []
    assert sequence.finish() == {"a": -L, "b": -L}


def test_prompt_and_generated_rows_of_one_chunk_are_replayed(sequence: BatchFeed) -> None:
    """A prompt that vLLM computes again leaves where it left the first time."""
    assert step(sequence, [rows("a", 4, 0)], 3) == {"a": -3}
    step(sequence, [rows("a", 1, 4)], 6)
    batch = sequence.begin([rows("a", 3, 2)])
    assert batch.units == [ExitUnit(0, 2, -1.0, 3, forced=True), replay(2, 6)]
    route(batch, 3, 6)
    assert sequence.finish() == {"a": 6}


def test_the_chunks_of_a_prompt_are_replayed_each_at_its_depth(sequence: BatchFeed) -> None:
    """Chunks left at 3, at 12 (which is never) and at 5; the second time they come in one piece."""
    for position, depth in ((0, 3), (2, L), (4, 5)):
        step(sequence, [rows("a", 2, position, prompt=8)], depth)
    batch = sequence.begin([rows("a", 8, 0, prompt=8)])
    assert batch.units == [
        ExitUnit(0, 2, -1.0, 3, forced=True),
        ExitUnit(4, 6, -1.0, 5, forced=True),
        ExitUnit(6, 8, 0.9, 2),
    ]
    route(batch, 3, 5, 7)
    assert sequence.finish() == {"a": -7}
    # A prompt that had been found in the cache in part: only what ran has a depth to replay.
    sequence.forget(["a"])
    step(sequence, [rows("a", 4, 4, prompt=8)], 6)
    assert sequence.begin([rows("a", 8, 0, prompt=8)]).units == [
        ExitUnit(0, 4, 0.9, 2),
        ExitUnit(4, 8, -1.0, 6, forced=True),
    ]


def test_a_prompt_that_never_left_stays_when_it_is_replayed(sequence: BatchFeed) -> None:
    step(sequence, [rows("a", 4, 0)], L)
    batch = sequence.begin([rows("a", 4, 0)])
    assert batch.units == []
    assert sequence.finish() == {"a": -L}


def test_a_prompt_on_the_backbone_needs_no_memory(feed: BatchFeed, sequence: BatchFeed) -> None:
    step(feed, [rows("a", 4, 0)])
    step(sequence, [rows("a", 4, 0, settings=OFF)])
    assert not feed._prompts and not sequence._prompts


def test_an_empty_step(feed: BatchFeed) -> None:
    batch = feed.begin([])
    assert (batch.num_rows, batch.units) == (0, [])
    assert feed.finish() == {}


def test_a_step_is_finished_once(feed: BatchFeed) -> None:
    step(feed, [rows("a", 1, 4)], 3)
    assert feed.finish() == {}


class TestWhereLeavingDoesNotPay:
    """With a limit, a step's tokens leave where all of its rows may, and are few enough."""

    OWN, TOLD = RiverSettings(True, 0.5, 1), RiverSettings(True, -1.0, 3)

    @pytest.fixture
    def feed(self) -> BatchFeed:
        return BatchFeed(12, "backbone", max_rows=2)

    @staticmethod
    def thresholds(feed: BatchFeed, *settings: RiverSettings) -> list[float]:
        batch = feed.begin([RequestRows(str(i), i, 1, 9, 9, s) for i, s in enumerate(settings)])
        feed.forget(str(i) for i in range(len(settings)))
        return [unit.threshold for unit in batch.units]

    def test_up_to_the_limit_all_may_leave(self, feed: BatchFeed) -> None:
        assert self.thresholds(feed, self.OWN, self.TOLD) == [0.5, -1.0]

    def test_with_more_all_stay(self, feed: BatchFeed) -> None:
        assert self.thresholds(feed, self.OWN, self.OWN, self.TOLD) == []

    @pytest.mark.parametrize("other", [OFF, NEVER, RiverSettings(True, 0.5, 12)])
    def test_a_row_that_has_to_stay_carries_the_others(
        self, feed: BatchFeed, other: RiverSettings
    ) -> None:
        assert self.thresholds(feed, self.OWN, other) == []

    def test_so_does_a_prompt_and_what_it_carried_is_marked(self, feed: BatchFeed) -> None:
        assert feed.begin([rows("a", 1, 4), rows("b", 4, 0, start=1)]).units == []
        assert feed.finish() == {"a": signed_depth(12, True, held=True), "b": -12}

    def test_a_token_that_may_not_leave_is_not_held(self, feed: BatchFeed) -> None:
        feed.begin([rows("a", 1, 4, settings=OFF), rows("b", 1, 4, start=1)])
        assert feed.finish() == {"a": 12, "b": signed_depth(12, True, held=True)}

    def test_what_has_left_once_leaves_again(self, feed: BatchFeed) -> None:
        step(feed, [rows("a", 1, 4)], 3)
        assert feed.begin([rows("a", 5, 0), rows("b", 4, 0, start=5)]).units == [replay(4, 3)]

    def test_prompts_that_leave_do_not_count(self) -> None:
        feed = BatchFeed(12, "sequence", max_rows=2)
        assert len(feed.begin([rows("a", 1, 4), rows("b", 4, 0, start=1)]).units) == 2


def test_the_tail_of_a_known_text_counts_as_generated() -> None:
    """Its rows are units of their own that name their text and position, in later chunks too."""
    settings = RiverSettings(True, 0.9, 2, teacher=TeacherForced(5, 6))
    feed = BatchFeed(L, "backbone")
    prompt = settings.prompt_tokens(10)
    batch = feed.begin([RequestRows("a", 0, 8, 0, prompt, settings)])
    assert [(u.start, u.token) for u in batch.units] == [(6, (5, 6)), (7, (5, 7))]
    feed.finish()
    batch = feed.begin([RequestRows("a", 0, 2, 8, prompt, settings)])
    assert [(u.start, u.token) for u in batch.units] == [(0, (5, 8)), (1, (5, 9))]


def test_offsets_travel_to_the_units_and_misfits_stay_on_the_backbone() -> None:
    offsets = (0.1,) * (L - 1)
    for given, units in ((offsets, 1), (offsets[1:], 0)):
        settings = RiverSettings(True, 0.9, 1, given)
        batch = BatchFeed(L, "backbone").begin([RequestRows("a", 0, 1, 5, 5, settings)])
        assert [u.offsets for u in batch.units] == [given] * units


def test_rows_of_no_unit_run_as_deep_as_the_step_goes(feed: BatchFeed) -> None:
    batch = feed.begin([rows("a", 4, 0), rows("b", 1, 9, start=4, settings=OFF)])
    batch.deepest = 3
    assert feed.finish() == {"a": -3, "b": 3}
