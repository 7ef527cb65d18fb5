"""OpenAI's error object."""

from __future__ import annotations

import json
from http import HTTPStatus

import pytest
from pydantic import ValidationError

from river_vllm.request import RiverField
from server.http.errors import FieldError, error_response


def test_bad_request_by_default() -> None:
    response = error_response("no", param="river.threshold")
    assert response.status_code == 400
    assert json.loads(response.body) == {
        "error": {
            "message": "no",
            "type": "BadRequestError",
            "param": "river.threshold",
            "code": 400,
        }
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (HTTPStatus.UNAUTHORIZED, "UnauthorizedError"),
        (HTTPStatus.SERVICE_UNAVAILABLE, "ServiceUnavailableError"),
    ],
)
def test_the_type_follows_the_status(status: HTTPStatus, kind: str) -> None:
    response = error_response("no", status)
    assert response.status_code == status
    assert json.loads(response.body)["error"]["type"] == kind


def test_only_a_refused_key_asks_for_one() -> None:
    assert error_response("no", HTTPStatus.UNAUTHORIZED).headers["www-authenticate"] == "Bearer"
    assert "www-authenticate" not in error_response("no").headers


def test_the_first_wrong_field_is_the_parameter_and_all_are_in_the_message() -> None:
    with pytest.raises(ValidationError) as error:
        RiverField.model_validate({"threshold": 2, "min_layers": 0})
    wrong = FieldError.from_validation(error.value, "river", RiverField)
    assert wrong.param == "river.threshold"
    assert str(wrong).startswith("river: 'threshold' = 2: ")
    assert "'min_layers' = 0: " in str(wrong)
