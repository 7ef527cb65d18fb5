"""Server-sent events from raw bytes, whatever the boundaries of the network reads."""

from __future__ import annotations

DONE = "[DONE]"
"""The data of the event that ends an OpenAI stream."""


class EventParser:
    """Cuts a byte stream into the data of its events.

    Bytes are decoded a whole line at a time, so that a character split between two reads is
    never broken. Comments (keep-alives) and fields other than ``data`` are skipped, as the
    event-stream format asks. Lines may end in LF or CRLF.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[str]:
        """The data of each event that ``chunk`` completes, in order.

        Raises:
            UnicodeDecodeError: a line is not UTF-8.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        events: list[str] = []
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" ").decode("utf-8"))
            elif not line and self._data:
                events.append("\n".join(self._data))
                self._data = []
        return events

    def ends_with_done(self) -> bool:
        """Whether the unfinished rest is ``[DONE]``, which some send without an empty line after.

        Anything else that is unfinished at the end of a stream was cut off.
        """
        line = self._rest.removesuffix(b"\r")
        data = [*self._data, line.decode("utf-8", "replace").removeprefix("data:").strip()]
        return "".join(data) == DONE
