"""Errors in the shape of OpenAI's error object, as vLLM's own server writes them."""

from __future__ import annotations

import json
from http import HTTPStatus

from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from river_vllm.errors import describe_errors, shortened

SHUTTING_DOWN = "the server is shutting down: send the request to another one"


class FieldError(Exception):
    """Refusal of a request because of one field.

    Args:
        param: the field, dotted (``river.threshold``).
        message: the field's error and its allowed values.
    """

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param

    @classmethod
    def from_validation(
        cls, error: ValidationError, prefix: str, model: type[BaseModel]
    ) -> FieldError:
        first = error.errors()[0]
        param = shortened(".".join([prefix, *(str(part) for part in first["loc"])]))
        return cls(param, f"{prefix}: {describe_errors(error, model)}")


def error_response(
    message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST, param: str | None = None
) -> Response:
    """OpenAI's error object with ``status``."""
    kind = "".join(word.capitalize() for word in status.phrase.split()) + "Error"
    body = {"message": message, "type": kind, "param": param, "code": int(status)}
    headers = {"WWW-Authenticate": "Bearer"} if status is HTTPStatus.UNAUTHORIZED else None
    # ASCII: a quoted name may hold half a surrogate pair, which UTF-8 cannot encode.
    content = json.dumps({"error": body})
    return Response(content, int(status), headers, media_type="application/json")
