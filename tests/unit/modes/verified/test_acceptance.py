"""What becomes of drafts is learnt per request, over all, and by confidence."""

from __future__ import annotations

import pytest

from river_vllm.modes.verified.acceptance import CONFIDENCE_PRIOR, GUESS_PRIOR, PRIOR, Acceptance


def test_a_request_that_rejects_is_told_from_one_that_keeps() -> None:
    acceptance = Acceptance()
    for _ in range(20):
        acceptance.verified("bad", [0.6, 0.6, 0.6], kept=0)
        acceptance.verified("good", [0.999, 0.999], kept=2)
    assert acceptance.rate("bad") < 0.2
    assert acceptance.rate("good") > 0.9
    assert 0.2 < acceptance.rate("new") < 0.9
    assert acceptance.likelihood(0.6) < 0.4
    assert acceptance.likelihood(0.999) > 0.99


def test_tokens_after_the_first_rejected_one_say_nothing() -> None:
    """The backbone never judged them: their own context was wrong."""
    one, other = Acceptance(), Acceptance()
    one.verified("a", [0.6, 0.6], kept=1)
    other.verified("a", [0.6, 0.6, 0.1, 0.1], kept=1)
    assert one.rate("a") == other.rate("a")
    assert other.likelihood(0.1) == CONFIDENCE_PRIOR[0]
    one.verified("b", [None, None], kept=1)
    assert one.likelihood(0.75) == pytest.approx(CONFIDENCE_PRIOR[3]), "nor sampled ones of it"


def test_all_that_was_learnt_fades() -> None:
    acceptance = Acceptance()
    for _ in range(100):
        acceptance.verified("a", [0.6], kept=0)
        acceptance.guessed("a", tried=1, right=0)
    assert acceptance.rate("a") < 0.1 and acceptance.likelihood(0.6) < 0.1
    for _ in range(1000):
        acceptance.fade()
    assert acceptance.rate("a") == pytest.approx(PRIOR, abs=0.01)
    assert acceptance.likelihood(0.6) == pytest.approx(CONFIDENCE_PRIOR[2], abs=0.01)
    assert acceptance.guess_rate("a") == pytest.approx(GUESS_PRIOR, abs=0.01)


def test_ended_requests_leave_nothing() -> None:
    acceptance = Acceptance()
    acceptance.verified("a", [0.6] * 3, kept=0)
    acceptance.forget(["a", "never seen"])
    assert acceptance.rate("a") == acceptance.rate("new")
