"""The ``river`` field of a body."""

from __future__ import annotations

import pytest

from river_vllm.config import RiverConfig
from server.http.errors import FieldError
from server.http.exchange import OTHERS, take_exchange
from server.http.state import RiverState
from tests.unit.http.support import VERIFIED, L, river_state

CHAT = "/v1/chat/completions"


def verifying() -> RiverState:
    return river_state(config=RiverConfig(verify=4), defaults=VERIFIED)


def test_a_mode_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(FieldError) as caught:
        take_exchange(CHAT, {"river": {"mode": "verified", "threshold": 0.5}}, verifying())
    assert caught.value.param == "river.threshold"
    with pytest.raises(FieldError) as caught:
        take_exchange(CHAT, {"river": {"mode": "verified"}}, river_state())
    assert caught.value.param == "river.mode"


WRONG = {
    "river": (None, 0.9, [{"threshold": 0.9}]),
    "river.treshold": ({"treshold": 0.9},),
    "river.threshold": ({"threshold": 1.5}, {"threshold": float("nan")}, {"threshold": [0.9]}),
    "river.min_layers": ({"min_layers": 0}, {"min_layers": L + 1}, {"min_layers": 10**30}),
    "river.enabled": ({"enabled": "false"}, {"enabled": None}),
    "river.trace": ({"trace": 1},),
}
"""Others are among the bad requests of ``tests/support/poison.py``."""


@pytest.mark.parametrize("param", WRONG)
def test_a_wrong_field_is_the_parameter_of_the_error(param: str) -> None:
    for field in WRONG[param]:
        with pytest.raises(FieldError, match=param.rpartition(".")[2]) as error:
            take_exchange(CHAT, {"river": field}, river_state())
        assert error.value.param == param


def test_one_of_many_unknown_names_is_enough() -> None:
    field = {"threshold": 0.5, **{f"k{number}": 0 for number in range(1000)}}
    with pytest.raises(FieldError) as error:
        take_exchange(CHAT, {"river": field}, river_state())
    assert error.value.param == "river.k0"
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("path", OTHERS)
def test_other_endpoints_refuse_the_field(path: str) -> None:
    assert take_exchange(path, {"model": "m"}, river_state()) is None
    with pytest.raises(FieldError) as error:
        take_exchange(path, {"river": {}}, river_state())
    assert error.value.param == "river"


def test_a_route_that_vllm_has_with_coheres_sdk_only_refuses_the_field_too() -> None:
    """``test_every_route.py`` sees what this environment's vLLM has; this one it lacks here."""
    assert {"/cohere/v2/chat", "/cohere/v2/chat/render"} <= set(OTHERS)


@pytest.mark.parametrize("path", [CHAT, OTHERS[0]])
def test_the_way_around_the_field_is_closed(path: str) -> None:
    hidden = {"sampling_params": {"extra_args": {"river": {"enabled": False}}}}
    for body, param in (
        ({"vllm_xargs": {"river": {"threshold": -1}}}, "vllm_xargs.river"),
        (hidden, "sampling_params.extra_args.river"),
    ):
        with pytest.raises(FieldError) as error:
            take_exchange(path, body, river_state())
        assert error.value.param == param
    assert take_exchange(CHAT, {"vllm_xargs": {"other": 1}}, river_state()) is not None


@pytest.mark.parametrize("option", ["background", "use_beam_search"])
def test_what_cannot_be_reported_on_is_refused_with_the_field_only(option: str) -> None:
    with pytest.raises(FieldError, match=option):
        take_exchange(CHAT, {"river": {}, option: True}, river_state())
    assert take_exchange(CHAT, {"river": {}, option: False}, river_state()) is not None
    # A beam's steps are requests of their own, so nothing is reported of them.
    without = take_exchange(CHAT, {option: True}, river_state())
    assert (without is None) is (option == "use_beam_search")
