"""nginx on the project's configuration, in front of servers that behave like River's.

Only its addresses are changed: Docker's DNS and the ports do not exist here, and Debian's nginx
does not follow a DNS server.
"""

from __future__ import annotations

import getpass
import http.client
import json
import socket
import subprocess
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from tests.deploy.files import DEPLOY

ADDRESSES = ("127.0.0.21", "127.0.0.22")
EVENTS = 3
KEY = {"Authorization": "Bearer secret-key"}


class Server(BaseHTTPRequestHandler):
    """Streams events, each only when the test has let it go; hangs up at ``/broken``.

    It asks for the key before it reads a body, closes the connection with the 503 of a drain, and
    not with that of a full queue, as River does.
    """

    protocol_version = "HTTP/1.1"
    gate = threading.Semaphore(0)
    begun: ClassVar[Counter[str]] = Counter()
    headers_seen: ClassVar[list[dict[str, str]]] = []
    draining: ClassVar[set[str]] = set()
    full: ClassVar[set[str]] = set()
    refused: ClassVar[Counter[str]] = Counter()

    def answer(self, status: int, body: str, connection: str = "close") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        # No connection outlives the server that the test stops.
        self.send_header("Connection", connection)
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self) -> None:
        allowed = self.path != "/v1/models" or self.headers["Authorization"] == KEY["Authorization"]
        self.answer(200 if allowed else 401, str(self.server.server_address[0]))

    def do_POST(self) -> None:
        path = self.path.partition("?")[0]
        self.headers_seen.append(dict(self.headers))
        length = int(self.headers["Content-Length"])
        if self.headers["Authorization"] != KEY["Authorization"]:
            self.answer(401, json.dumps({"error": {"code": 401}}), "keep-alive")
            self.rfile.read(length)
            return
        body = self.rfile.read(length)
        address = str(self.server.server_address[0])
        if address in self.draining | self.full:
            self.refused[address] += 1
            self.answer(503, "no", "close" if address in self.draining else "keep-alive")
            return
        self.begun[path] += 1
        if path == "/broken":
            self.close_connection = True
            return
        if path == "/whole":
            self.answer(200, f"{address} {len(body)}")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(EVENTS):
            self.gate.acquire(timeout=20)
            event = f"data: {number}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *arguments: object) -> None:
        pass


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def configuration(listen: int, upstreams: list[str], folder: Path) -> str:
    text = (DEPLOY / "nginx" / "nginx.conf").read_text()
    for old, new in {
        "include /tmp/resolver.conf;": "",
        "/tmp/": f"{folder}/",
        "listen 8080;": f"listen 127.0.0.1:{listen};",
        "server river:8000 resolve max_fails=2": "; ".join(
            f"server {address} max_fails=2" for address in upstreams
        ),
        "/dev/stdout": f"{folder}/access.log",
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


class Proxy:
    """nginx before ``upstreams``, which are up."""

    def __init__(self, folder: Path, binary: str, upstreams: list[str]) -> None:
        self.port = free_port()
        self.folder = folder
        path = folder / "nginx.conf"
        path.write_text(configuration(self.port, upstreams, folder))
        self.log = folder / "access.log"
        # As root nginx would give its work to a user who may not enter the folder.
        user = f"user {getpass.getuser()};"
        self.process = subprocess.Popen(
            [binary, "-p", str(folder), "-c", str(path), "-g", f"daemon off; {user}"]
        )
        deadline = time.monotonic() + 20
        while self.get("/ready")[0] != 200:
            assert time.monotonic() < deadline, "nginx does not find its servers"
            assert self.process.poll() is None, "nginx has ended"
            time.sleep(0.1)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def get(self, path: str) -> tuple[int, str]:
        return self.ask("GET", path, None, KEY)

    def ask(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, str]:
        """Status and body of an answer; (0, "") where there is none."""
        connection = self.connect()
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except ConnectionError:
            return 0, ""
        finally:
            connection.close()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)


class Servers:
    """Two of ``Server``."""

    def __init__(self) -> None:
        for seen in (
            *(Server.begun, Server.headers_seen),
            *(Server.draining, Server.full, Server.refused),
        ):
            seen.clear()
        port = free_port(ADDRESSES[0])
        self.upstreams = [f"{address}:{port}" for address in ADDRESSES]
        self.running = [ThreadingHTTPServer((a, port), Server) for a in ADDRESSES]
        for server in self.running:
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def stop(self, number: int) -> None:
        self.running[number].shutdown()
        self.running[number].server_close()
