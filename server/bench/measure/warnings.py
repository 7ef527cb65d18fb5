"""What a reader has to know before trusting the figures of a level."""

from __future__ import annotations

from collections.abc import Iterator

from server.bench.lag import ClientLoad
from server.bench.measure.level import LevelReport
from server.bench.measure.statistics import Distribution
from server.bench.measure.timing import TokenBasis

LAG_FLOOR_MS = 5.0
LAG_SHARE = 0.25
"""Times are late once the 99th percentile of loop lag is above both: 5 ms, and a quarter of the
median gap between chunks."""

CPU_SHARE = 0.9
"""The client is busy once it uses this much of the one core that an event loop has."""

OWN_SHARE = 0.5
"""A late client that uses more than this of a core has itself to blame."""

SEND_DELAY_MS = 20.0
"""An open loop that sends later than this (99th percentile) is not the load it claims to be."""

SHORT_SHARE = 0.98
"""Answers shorter than this share of what was asked make end-to-end figures look better."""


def level_warnings(report: LevelReport, fixed_lengths: bool) -> list[str]:
    """In the order in which they matter.

    Args:
        fixed_lengths: the output lengths asked for are meant to be reached.
    """
    return [
        *_failures(report),
        *client_warnings(report.client, report.chunk_gap_ms),
        *_open_loop(report),
        *_tokens(report, fixed_lengths),
    ]


def _failures(report: LevelReport) -> Iterator[str]:
    counts = report.counts
    if counts.completed == 0:
        yield f"none of {counts.sent} requests completed: there is nothing to report"
    elif counts.bad:
        causes = ", ".join(f"{number}× {name}" for name, number in report.errors.items())
        yield (
            f"{counts.bad} of {counts.sent} requests failed ({causes}); latencies and throughput "
            "are of the completed ones, and a server that refuses work answers the rest sooner"
        )


def client_warnings(client: ClientLoad | None, gaps: Distribution | None) -> Iterator[str]:
    """Whether the client, not the server, bounds the figures."""
    if client is None:
        return
    lag, share = client.loop_lag_p99_ms, client.cpu_share or 0.0
    limit = max(LAG_FLOOR_MS, LAG_SHARE * (gaps.p50 if gaps else 0.0))
    cause = "is busy itself" if share > OWN_SHARE else "waits for a core that others hold"
    if lag is not None and lag > limit:
        yield (
            f"the client is a bottleneck: it notices arrivals {lag:.1f} ms late (p99, limit "
            f"{limit:.1f} ms), which is in the times shown; it {cause} and uses {share:.0%} of one"
        )
    elif share > CPU_SHARE:
        yield (
            f"the client is a bottleneck: it uses {share:.0%} of the one core that it can use; "
            "run several clients, or load it less"
        )


def _open_loop(report: LevelReport) -> Iterator[str]:
    delay = report.send_delay_ms
    if delay is not None and delay.p99 > SEND_DELAY_MS:
        yield (
            f"requests left late (p99 {delay.p99:.0f} ms after schedule): "
            "the rate asked for was not the rate sent"
        )


def _tokens(report: LevelReport, fixed_lengths: bool) -> Iterator[str]:
    tokens, completed = report.tokens, report.counts.completed
    without = completed - (tokens.requests if tokens else 0)
    if without:
        yield (
            f"{without} of {completed} answers came without usage: token throughput and TPOT "
            "leave them out"
        )
    averaged = report.itl_basis.get(TokenBasis.AVERAGED, 0)
    if averaged:
        yield (
            f"{averaged} of {completed} answers hold several tokens per chunk: their ITL spreads "
            "each gap over the mean number; --chunk-usage asks the server for the exact one"
        )
    if fixed_lengths and tokens and tokens.output < SHORT_SHARE * tokens.asked:
        yield (
            f"answers ended early: {tokens.output} of {tokens.asked} tokens asked for; "
            "--ignore-eos (vLLM, SGLang) makes lengths hold"
        )
