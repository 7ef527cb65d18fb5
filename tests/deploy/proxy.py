"""nginx on the project's configuration, in front of servers that behave like River's.

Only its addresses are changed: Docker's DNS and the ports do not exist here.
"""

from __future__ import annotations

import http.client
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


class Server(BaseHTTPRequestHandler):
    """Streams events, each only when the test has let it go; hangs up at ``/broken``."""

    protocol_version = "HTTP/1.1"
    gate = threading.Semaphore(0)
    asked: ClassVar[Counter[str]] = Counter()
    headers_seen: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        body = str(self.server.server_address[0]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        # No connection outlives the server that the test stops.
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        self.asked[path] += 1
        self.headers_seen.append(dict(self.headers))
        if path == "/broken":
            self.close_connection = True
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


class Names(threading.Thread):
    """A DNS server that answers every question with ``addresses``."""

    def __init__(self, addresses: tuple[str, ...]) -> None:
        super().__init__(daemon=True)
        self.addresses = addresses
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]

    def run(self) -> None:
        while True:
            try:
                query, client = self.socket.recvfrom(512)
            except OSError:
                return
            end = query.index(b"\0", 12) + 5
            record = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4"
            answers = b"".join(record + socket.inet_aton(a) for a in self.addresses)
            counts = b"\0\1" + len(self.addresses).to_bytes(2, "big") + b"\0\0\0\0"
            self.socket.sendto(query[:2] + b"\x81\x80" + counts + query[12:end] + answers, client)


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def configuration(resolver: int, listen: int, upstream: int, folder: Path) -> str:
    text = (DEPLOY / "nginx" / "nginx.conf").read_text()
    for old, new in {
        "include /tmp/resolver.conf;": f"resolver 127.0.0.1:{resolver} valid=5s ipv6=off;",
        "/tmp/": f"{folder}/",
        "listen 8080;": f"listen 127.0.0.1:{listen};",
        "server river:8000 ": f"server river:{upstream} ",
        "/dev/stdout": f"{folder}/access.log",
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


class Proxy:
    """nginx, its two servers and their name."""

    def __init__(self, folder: Path, binary: str) -> None:
        Server.asked.clear()
        Server.headers_seen.clear()
        upstream = free_port(ADDRESSES[0])
        self.port = free_port()
        self.servers = [ThreadingHTTPServer((a, upstream), Server) for a in ADDRESSES]
        for server in self.servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        self.names = Names(ADDRESSES)
        self.names.start()
        path = folder / "nginx.conf"
        path.write_text(configuration(self.names.port, self.port, upstream, folder))
        self.log = folder / "access.log"
        self.process = subprocess.Popen(
            [binary, "-p", str(folder), "-c", str(path), "-g", "daemon off;"]
        )
        deadline = time.monotonic() + 20
        while self.get("/ready")[0] != 200:
            assert time.monotonic() < deadline, "nginx does not find its servers"
            assert self.process.poll() is None, "nginx has ended"
            time.sleep(0.1)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def get(self, path: str) -> tuple[int, str]:
        connection = self.connect()
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except ConnectionError:
            return 0, ""
        finally:
            connection.close()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)
        for server in self.servers:
            server.shutdown()
            server.server_close()
        self.names.socket.close()
