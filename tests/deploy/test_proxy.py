"""deploy/nginx/nginx.conf, run by a real nginx in front of servers that behave like River's.

Its addresses are the only thing changed: Docker's DNS and the ports do not exist here.
"""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, seconds
from tests.deploy.programs import nginx, run

ADDRESSES = ("127.0.0.21", "127.0.0.22")
EVENTS = 3


class Server(BaseHTTPRequestHandler):
    """Streams events, each only when the test has let it go; hangs up at ``/broken``."""

    protocol_version = "HTTP/1.1"
    gate = threading.Semaphore(0)
    asked: Counter[str] = Counter()
    headers_seen: list[dict[str, str]] = []

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
        "/tmp/": f"{folder}/",
        "resolver 127.0.0.11 ": f"resolver 127.0.0.1:{resolver} ",
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


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    running = Proxy(tmp_path, nginx())
    yield running
    running.stop()


def test_silence_of_a_queued_prompt_outlasts_no_time_out() -> None:
    text = (DEPLOY / "nginx" / "nginx.conf").read_text()
    assert "proxy_buffering off;" in text
    limit = re.search(r"proxy_read_timeout (\w+);", text)
    assert limit is not None
    assert seconds(limit[1]) >= 1800


def test_configuration_is_accepted_as_it_is(tmp_path: Path) -> None:
    run(nginx(), "-t", "-q", "-p", tmp_path, "-c", DEPLOY / "nginx" / "nginx.conf")


def test_events_pass_one_by_one(proxy: Proxy) -> None:
    connection = proxy.connect()
    connection.request("POST", "/v1/chat/completions", b"{}")
    Server.gate.release()
    answer = connection.getresponse()
    for number in range(EVENTS):
        # The server writes the next event only now: whatever buffers would wait forever.
        assert answer.readline() == f"data: {number}\n".encode()
        assert answer.readline() == b"\n"
        Server.gate.release()
    assert answer.read() == b""


def test_requests_are_shared_and_a_dead_server_is_passed_over(proxy: Proxy) -> None:
    assert {proxy.get("/v1/models")[1] for _ in range(8)} == set(ADDRESSES)
    proxy.servers[0].shutdown()
    proxy.servers[0].server_close()
    answers = [proxy.get("/v1/models") for _ in range(8)]
    assert answers == [(200, ADDRESSES[1])] * 8


def test_a_request_that_was_read_is_never_sent_to_another_server(proxy: Proxy) -> None:
    connection = proxy.connect()
    connection.request("POST", "/broken", b"{}")
    assert connection.getresponse().status == 502
    assert Server.asked["/broken"] == 1


def test_metrics_of_a_random_server_are_not_offered(proxy: Proxy) -> None:
    assert proxy.get("/metrics")[0] == 404
    assert proxy.get("/proxy/health") == (200, "ok\n")


def test_keys_reach_the_server_and_not_the_log(proxy: Proxy) -> None:
    connection = proxy.connect()
    connection.request(
        "POST", "/broken?q=secret-query", b"{}", {"Authorization": "Bearer secret-key"}
    )
    connection.getresponse().read()
    assert Server.headers_seen[-1]["Authorization"] == "Bearer secret-key"
    assert len(Server.headers_seen[-1]["X-Request-Id"]) == 32
    deadline = time.monotonic() + 10
    while "/broken" not in proxy.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "secret" not in proxy.log.read_text()
