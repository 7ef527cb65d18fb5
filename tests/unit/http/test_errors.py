"""OpenAI's error object."""

from __future__ import annotations

import json
from http import HTTPStatus

import pytest
from pydantic import ValidationError

from river_vllm.request import RiverField
from server.http.errors import FieldError, error_response


@pytest.mark.parametrize(
    ("status", "kind", "headers"),
    [
        (HTTPStatus.BAD_REQUEST, "BadRequestError", set()),
        (HTTPStatus.UNAUTHORIZED, "UnauthorizedError", {"www-authenticate"}),
        (HTTPStatus.SERVICE_UNAVAILABLE, "ServiceUnavailableError", set()),
    ],
)
def test_the_type_follows_the_status_and_only_a_refused_key_asks_for_one(
    status: HTTPStatus, kind: str, headers: set[str]
) -> None:
    response = error_response("no", status, param="river.threshold")
    assert response.status_code == status
    error = {"message": "no", "type": kind, "param": "river.threshold", "code": status}
    assert json.loads(response.body) == {"error": error}
    assert {"www-authenticate"} & set(response.headers) == headers


def test_the_first_wrong_field_is_the_parameter_and_all_are_in_the_message() -> None:
    with pytest.raises(ValidationError) as error:
        RiverField.model_validate({"threshold": 2, "min_layers": 0})
    wrong = FieldError.from_validation(error.value, "river", RiverField)
    assert wrong.param == "river.threshold"
    assert "'threshold' = 2" in str(wrong) and "'min_layers' = 0" in str(wrong)
