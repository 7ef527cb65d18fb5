"""deploy/nginx/nginx.conf, run by a real nginx."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, seconds
from tests.deploy.programs import nginx, run
from tests.deploy.proxy import ADDRESSES, EVENTS, Proxy, Server


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


def test_configuration_is_accepted_with_what_start_sh_writes(tmp_path: Path) -> None:
    script = (DEPLOY / "nginx" / "start.sh").read_text().replace("/tmp/", f"{tmp_path}/")
    run("sh", "-c", script.replace("exec nginx", "exec true"))
    path = tmp_path / "nginx.conf"
    path.write_text((DEPLOY / "nginx" / "nginx.conf").read_text().replace("/tmp/", f"{tmp_path}/"))
    run(nginx(), "-t", "-q", "-p", tmp_path, "-c", path)


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


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_server_learns_of_tls_before_the_proxy(proxy: Proxy, scheme: str) -> None:
    connection = proxy.connect()
    said = {"X-Forwarded-Proto": scheme} if scheme == "https" else {}
    connection.request("POST", "/broken", b"{}", said)
    connection.getresponse().read()
    assert Server.headers_seen[-1]["X-Forwarded-Proto"] == scheme
