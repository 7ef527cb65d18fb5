"""The image's health check: exit status 0 while River's server is ready, 1 otherwise.

The body of the answer goes to standard output, where ``docker inspect`` shows it.
``RIVER_HEALTH_URL`` names another address, for a server behind TLS or on another port.
"""

import http.client
import os
import sys
import urllib.error
import urllib.request

URL = "http://127.0.0.1:8000/ready"
TIMEOUT_SECONDS = 8
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Not by way of HTTP_PROXY: the server is in this container."""


def main() -> int:
    url = os.environ.get("RIVER_HEALTH_URL", URL)
    try:
        with DIRECT.open(url, timeout=TIMEOUT_SECONDS) as answer:
            print(answer.read(1000).decode(errors="replace"))
            return 0
    except urllib.error.HTTPError as error:
        print(f"{url}: HTTP {error.code}: {error.read(1000).decode(errors='replace')}")
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(f"{url}: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
