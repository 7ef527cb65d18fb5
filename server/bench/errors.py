"""What a user of the client can get wrong, said in one line."""

from __future__ import annotations


class BenchError(ValueError):
    """A bad option, file or endpoint; the message names it, its value and what is allowed.

    ``status`` is the exit status: 2 for a bad argument, 1 for an endpoint that does not answer.
    """

    status = 2


class EndpointError(BenchError):
    """The endpoint cannot be used at all: unreachable, refuses the key, serves no model."""

    status = 1
