"""Change the live threshold of the server in this container: ``set_threshold.py 0.9``.

A live change reaches one server; where several run, each is told in its own container. The key is
the first in ``RIVER_API_KEY_FILE``. The answer of the server goes to standard output; exit status
0 means that the server accepted the value.
"""

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

URL = "http://127.0.0.1:8000/river"
TIMEOUT_SECONDS = 10
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Not by way of HTTP_PROXY: the server is in this container."""


def request(threshold: float) -> urllib.request.Request:
    """The PATCH, with a key where the server wants one.

    Raises:
        OSError: the key file cannot be read.
    """
    headers = {"Content-Type": "application/json"}
    path = os.environ.get("RIVER_API_KEY_FILE")
    keys = Path(path).read_text(encoding="utf-8").split() if path else []
    if keys:
        headers["Authorization"] = f"Bearer {keys[0]}"
    body = json.dumps({"threshold": threshold}).encode()
    url = os.environ.get("RIVER_URL", URL)
    return urllib.request.Request(url, body, headers, method="PATCH")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("threshold", type=float, help="in [-1, 1]; 1 never exits")
    try:
        with DIRECT.open(request(parser.parse_args().threshold), timeout=TIMEOUT_SECONDS) as answer:
            print(answer.read().decode())
            return 0
    except urllib.error.HTTPError as error:
        print(f"HTTP {error.code}: {error.read(1000).decode(errors='replace')}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
