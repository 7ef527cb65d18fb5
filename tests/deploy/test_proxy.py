"""deploy/nginx/nginx.conf, run by a real nginx."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, seconds
from tests.deploy.programs import program, run
from tests.deploy.proxy import ADDRESSES, EVENTS, KEY, Proxy, Server, Servers
from tests.support.poll import poll_until

NGINX_WITH_RESOLVE = (1, 27, 3)
"""The first open-source nginx whose ``server … resolve`` follows DNS."""
LARGE = 1 << 20
"""Bytes of a body that does not fit into the memory of a connection."""


def nginx() -> str:
    return program("nginx", "Debian: apt-get install nginx-light; RIVER_NGINX=/path names one")


@pytest.fixture
def servers() -> Iterator[Servers]:
    running = Servers()
    yield running
    for number in range(len(ADDRESSES)):
        running.stop(number)


@pytest.fixture
def proxy(tmp_path: Path, servers: Servers) -> Iterator[Proxy]:
    running = Proxy(tmp_path, nginx(), servers.upstreams)
    yield running
    running.stop()


def test_silence_of_a_queued_prompt_outlasts_no_time_out() -> None:
    text = (DEPLOY / "nginx" / "nginx.conf").read_text()
    assert "proxy_buffering off;" in text
    limit = re.search(r"proxy_read_timeout (\w+);", text)
    assert limit is not None
    assert seconds(limit[1]) >= 1800


def test_configuration_is_accepted_with_what_start_sh_writes(tmp_path: Path) -> None:
    shown = subprocess.run([nginx(), "-v"], capture_output=True, text=True).stderr
    version = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", shown)
    assert version is not None, shown
    if tuple(map(int, version.groups())) < NGINX_WITH_RESOLVE:
        pytest.skip(f"{version[0]} cannot follow DNS ('resolve' came with 1.27.3); not run")
    script = (DEPLOY / "nginx" / "start.sh").read_text().replace("/tmp/", f"{tmp_path}/")
    run("sh", "-c", script.replace("exec nginx", "exec true"))
    path = tmp_path / "nginx.conf"
    path.write_text((DEPLOY / "nginx" / "nginx.conf").read_text().replace("/tmp/", f"{tmp_path}/"))
    run(nginx(), "-t", "-q", "-p", tmp_path, "-c", path)


def test_events_pass_one_by_one(proxy: Proxy) -> None:
    connection = proxy.connect()
    connection.request("POST", "/v1/chat/completions", b"{}", KEY)
    Server.gate.release()
    answer = connection.getresponse()
    for number in range(EVENTS):
        # The server writes the next event only now: whatever buffers would wait forever.
        assert answer.readline() == f"data: {number}\n".encode()
        assert answer.readline() == b"\n"
        Server.gate.release()
    assert answer.read() == b""


def test_requests_are_shared_and_a_dead_server_is_passed_over(proxy: Proxy, servers: Servers):
    assert {proxy.get("/v1/models")[1] for _ in range(8)} == set(ADDRESSES)
    servers.stop(0)
    answers = [proxy.get("/v1/models") for _ in range(8)]
    assert answers == [(200, ADDRESSES[1])] * 8


@pytest.mark.parametrize("draining", [(), ADDRESSES[:1]])
def test_a_request_that_was_read_is_never_sent_to_another_server(
    proxy: Proxy, draining: tuple[str, ...]
) -> None:
    Server.draining.update(draining)
    answers = [proxy.ask("POST", "/broken", b"{}", KEY)[0] for _ in range(2)]
    assert answers == [502] * 2
    assert Server.begun["/broken"] == 2


@pytest.mark.parametrize("size", [2, LARGE])
def test_no_request_fails_while_a_server_drains(proxy: Proxy, size: int) -> None:
    Server.draining.add(ADDRESSES[0])
    answers = Counter(proxy.ask("POST", "/whole", b"x" * size, KEY) for _ in range(50))
    assert answers == {(200, f"{ADDRESSES[1]} {size}"): 50}
    assert Server.refused[ADDRESSES[0]], "the draining server was not asked"


def test_a_draining_server_attracts_no_traffic(proxy: Proxy) -> None:
    """It has fewer open requests than the other, since it refuses at once."""
    Server.draining.add(ADDRESSES[0])
    streams = [proxy.connect() for _ in range(2)]
    for stream in streams:
        stream.request("POST", "/v1/chat/completions", b"{}", KEY)
    poll_until(lambda: Server.begun.total() == 2, 10, "the other server has two open requests")
    Server.refused.clear()
    answers = [proxy.ask("POST", "/whole", b"{}", KEY)[0] for _ in range(20)]
    assert answers == [200] * 20
    # Two requests that are sent to it twice; then it rests.
    assert Server.refused[ADDRESSES[0]] <= 4
    for _ in range(len(streams) * EVENTS):
        Server.gate.release()
    for stream in streams:
        assert stream.getresponse().read().count(b"data") == EVENTS


def test_where_every_server_is_full_the_client_is_told_so(proxy: Proxy) -> None:
    Server.full.update(ADDRESSES)
    answers = [proxy.ask("POST", "/whole", b"{}", KEY) for _ in range(8)]
    assert answers == [(503, "no")] * 8
    assert Server.refused.total() <= 16
    Server.full.clear()
    assert proxy.ask("POST", "/whole", b"{}", KEY)[0] == 200


@pytest.mark.parametrize("key", [{}, {"Authorization": "Bearer wrong-key"}])
def test_a_body_without_a_key_is_not_kept(proxy: Proxy, key: dict[str, str]) -> None:
    """The answer comes before the body has: whoever waits for the rest of it has kept the start."""
    connection = proxy.connect()
    connection.putrequest("POST", "/v1/chat/completions")
    for name, value in {**key, "Content-Length": str(LARGE)}.items():
        connection.putheader(name, value)
    connection.endheaders(b"x" * (LARGE // 2))
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (401, b'{"error": {"code": 401}}')
    assert not [path for path in (proxy.folder / "client_body").rglob("*") if path.is_file()]


def test_without_servers_a_large_body_is_answered_as_a_small_one(proxy: Proxy, servers: Servers):
    for number in range(len(ADDRESSES)):
        servers.stop(number)
    for size in (2, LARGE):
        assert proxy.ask("POST", "/whole", b"x" * size, KEY)[0] == 502


def test_metrics_of_a_random_server_are_not_offered(proxy: Proxy) -> None:
    assert proxy.get("/metrics")[0] == 404
    assert proxy.get("/proxy/health") == (200, "ok\n")


def test_keys_reach_the_server_and_not_the_log(proxy: Proxy) -> None:
    proxy.ask("POST", "/broken?q=secret-query", b"{}", KEY)
    assert Server.headers_seen[-1]["Authorization"] == "Bearer secret-key"
    assert len(Server.headers_seen[-1]["X-Request-Id"]) == 32
    poll_until(lambda: "/broken" in proxy.log.read_text(), 10, "the request is in the log")
    assert "secret" not in proxy.log.read_text()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_server_learns_of_tls_before_the_proxy(proxy: Proxy, scheme: str) -> None:
    said = {"X-Forwarded-Proto": scheme} if scheme == "https" else {}
    proxy.ask("POST", "/broken", b"{}", KEY | said)
    assert Server.headers_seen[-1]["X-Forwarded-Proto"] == scheme
