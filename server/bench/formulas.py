"""The definitions of all figures, in the words that every report prints."""

from __future__ import annotations

from dataclasses import dataclass

from server.bench.measure.slo import ITL_SLO_PERCENTILE


@dataclass(frozen=True, slots=True)
class Formula:
    """One figure: how it is computed, and what is easily mistaken about it."""

    name: str
    formula: str
    note: str


RUN_FORMULAS = (
    Formula(
        "TTFT",
        "t(first chunk that carries output) − t(request sent)",
        "Output is text, reasoning, a refusal or a tool call; a chunk that only announces the "
        "role is none. An answer without output takes its first chunk that can hold a token.",
    ),
    Formula(
        "ITL",
        "(t(chunk j) − t(chunk j−1)) / tokens(chunk j), one sample per token, pooled over requests",
        "TTFT is never a sample. Tokens per chunk come from usage in every chunk if the server "
        "sends it; if chunks and completion_tokens are equal in number, each holds one; otherwise "
        "each counts as completion_tokens / chunks, one sample per gap, and the report says so.",
    ),
    Formula(
        "chunk gap",
        "t(chunk j) − t(chunk j−1) of chunks that carry output, pooled over requests",
        "What a reader sees. Several tokens in one chunk make it longer than ITL.",
    ),
    Formula(
        "TPOT",
        "(E2E − TTFT) / (completion_tokens − 1), one sample per request",
        "Undefined, not 0, below two tokens or without usage.",
    ),
    Formula(
        "E2E",
        "t(chunk with finish_reason) − t(request sent)",
        "The usage chunk and [DONE] after it are not waited for.",
    ),
    Formula(
        "percentile p",
        "linear interpolation at rank p/100 · (n − 1) of the n sorted samples",
        "p50 is the median.",
    ),
    Formula(
        "duration",
        "t(last request ended) − t(first request sent)",
        "Over all requests of the level, however they ended; warm-up is outside.",
    ),
    Formula(
        "requests/s",
        "completed / duration",
        "Failed, incomplete and cancelled requests add to the duration and never to the count.",
    ),
    Formula(
        "tokens/s",
        "Σ tokens of completed requests / duration",
        "Tokens are the server's usage, never a count of chunks.",
    ),
    Formula(
        "goodput",
        "completed requests that keep every objective / duration; "
        "share = the same / (completed + failed + incomplete)",
        f"itl looks at the request's own p{ITL_SLO_PERCENTILE}; a figure that a request does not "
        "have is an objective missed.",
    ),
    Formula(
        "completed",
        "HTTP 200, an event stream, a finish_reason, then [DONE]",
        "Failed: HTTP error, no connection, time-out, error object in the stream, finish_reason "
        "abort or error. Incomplete: the stream ended without finish_reason or [DONE]. "
        "Cancelled: the client left on purpose. Latencies and throughput are of completed "
        "requests alone.",
    ),
    Formula(
        "send delay",
        "t(request sent) − t(scheduled), open loop",
        "Large values mean that the client could not offer the rate asked for.",
    ),
    Formula(
        "mean exit layer",
        "Σ layer · tokens / Σ tokens over exit_layers of completed answers",
        "As the server reports them; layer L is the last one, where nothing was skipped.",
    ),
)

COMPARE_FORMULAS = (
    Formula(
        "round",
        "the same requests to A and then to B; the next round to B and then to A",
        "A round counts only if every request of both sides completed.",
    ),
    Formula(
        "speed-up of B",
        "A / B for times, B / A for throughput, per round; above 1 B is faster",
        "A side's time in a round is the median of its requests (of all samples for ITL); its "
        "throughput is completed requests, or their tokens, per second of its part of the round.",
    ),
    Formula(
        "median ratio",
        "median over the rounds that count",
        "A ratio of pairs, so that drift of the machine hits both sides of a pair alike.",
    ),
    Formula(
        "confidence interval",
        "percentile bootstrap: rounds drawn with replacement, the median of each draw, "
        "its (1−c)/2 and (1+c)/2 quantiles",
        "Seeded, so the same data give the same interval.",
    ),
)


def as_text(formulas: tuple[Formula, ...] = RUN_FORMULAS + COMPARE_FORMULAS) -> str:
    """For ``--explain``."""
    return "\n".join(f"{f.name} = {f.formula}\n    {f.note}" for f in formulas)


def as_document(formulas: tuple[Formula, ...]) -> dict[str, str]:
    """For reports: name → formula and note."""
    return {f.name: f"{f.formula}. {f.note}" for f in formulas}
