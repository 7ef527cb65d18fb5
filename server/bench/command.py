"""``river-vllm bench compare``."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime

from river_vllm.errors import RiverError
from server.bench.options import CompareOptions
from server.cli.endpoint import EndpointError
from server.cli.output import Steps, make_console, write_json


def compare(options: CompareOptions) -> int:
    """Run the comparison; the exit status.

    Raises:
        RiverError: a file is not as expected, or packages are missing.
    """
    try:
        from server.bench.figures import measure
        from server.bench.report import document, print_report
        from server.bench.rounds import Comparer
    except ImportError as error:
        raise RiverError(
            f"bench compare: {error}; pip install 'river-vllm[bench]' brings it"
        ) from None
    started = datetime.now(UTC)
    try:
        with Steps(not options.output.no_progress) as steps:
            comparison = asyncio.run(Comparer(options, steps).run())
    except EndpointError as error:
        print(f"river-vllm bench compare: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("river-vllm bench compare: interrupted before it began", file=sys.stderr)
        return 130
    report = measure(options, comparison)
    console = make_console(record=True)
    print_report(console, options, comparison, report)
    if options.output.json_file:
        write_json(options.output.json_file, document(options, comparison, report, started))
    if options.output.html:
        console.save_html(str(options.output.html))
    if comparison.interrupted:
        return 130
    return 1 if report.verdicts else 0
