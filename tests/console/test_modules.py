"""The console's pure modules, run in the browser; and its way in, on a server without an engine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from server.http.auth import RiverAuthMiddleware
from server.http.console.page import PATH, attach_console

KEY = "open-sesame"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The console's routes behind River's key check, and nothing else of a server."""
    app = FastAPI()
    app.state.args = SimpleNamespace(api_key=[KEY])
    app.state.river = object()
    attach_console(app)
    app.get("/river")(lambda: {"active": False})
    app.add_middleware(RiverAuthMiddleware)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}{PATH}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def inside(page: Any, url: str) -> Any:
    """The console, signed in to."""
    page.goto(url)
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector("#model")
    return page


def run(page: Any, module: str, script: str) -> Any:
    return page.evaluate(f"import('{PATH}/js/{module}.js').then((m) => {script})")


def test_the_key_is_asked_for_kept_in_the_tab_and_forgotten(page: Any, url: str) -> None:
    answer = page.goto(url)
    assert answer.status == 401
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Open the console").click()
    page.get_by_text("does not accept this key").wait_for()
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    page.get_by_text("served without a river").wait_for()
    assert page.evaluate("Object.values(sessionStorage)") == [KEY]
    assert page.evaluate("document.cookie + JSON.stringify(localStorage)") == "{}"
    page.reload()
    page.get_by_text("served without a river").wait_for()
    page.get_by_role("button", name="Key", exact=True).click()
    page.get_by_role("button", name="Forget").click()
    page.get_by_role("button", name="Open the console").wait_for()
    assert page.evaluate("sessionStorage.length") == 0
    assert page.context.cookies() == []


def test_a_browser_that_keeps_no_cookie_is_told_so(page: Any, url: str) -> None:
    """A proxy that takes part of the path off does the same."""
    page.route("**/console", take_no_cookie)
    page.goto(url)
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Open the console").click()
    page.get_by_text("did not keep the cookie").wait_for()


def take_no_cookie(route: Any) -> None:
    """The key is right, and the browser does not hear of a cookie."""
    if route.request.method == "POST":
        route.fulfill(status=204)
    else:
        route.continue_()


def test_a_key_that_ended_is_asked_for_again(inside: Any) -> None:
    inside.evaluate("sessionStorage.setItem('river-key', 'of yesterday')")
    inside.reload()
    dialog = inside.get_by_role("dialog")
    dialog.get_by_text("does not accept this key").wait_for()
    dialog.get_by_label("Key of this server").fill(KEY)
    dialog.get_by_role("button", name="Use").click()
    inside.get_by_text("served without a river").wait_for()
    assert not dialog.is_visible()


def test_differences_are_what_is_not_in_the_longest_common_subsequence(inside: Any) -> None:
    script = "((a, b) => m.differences([...a], [...b]).map((side) => [...side]))"
    for a, b, expected in (
        ("abc", "axbc", [[], [1]]),
        ("abcd", "abd", [[2], []]),
        ("abc", "xyz", [[0, 1, 2], [0, 1, 2]]),
        ("", "ab", [[], [0, 1]]),
    ):
        assert run(inside, "diff", f"{script}('{a}', '{b}')") == expected, (a, b)


def test_what_the_browser_does_not_keep_the_page_remembers(inside: Any) -> None:
    blocked = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('no'); } })"
    script = "[m.local.set('a', '1'), m.local.get('a'), m.local.remove('a'), m.local.get('a')]"
    assert run(inside, "storage", f"({blocked}, {script})")[1::2] == ["1", None]


def test_events_may_arrive_in_any_pieces(inside: Any) -> None:
    script = """(async () => {
        const text = 'data: {"å": 1}\\n\\n: ping\\n\\ndata: [DONE]\\n\\n';
        const bytes = new TextEncoder().encode(text);
        const found = [];
        for (let size = 1; size <= bytes.length; size += 1) {
          const body = new ReadableStream({ start(controller) {
            for (let at = 0; at < bytes.length; at += size)
              controller.enqueue(bytes.slice(at, at + size));
            controller.close();
          } });
          const data = [];
          for await (const event of m.events(body)) data.push(event);
          found.push(data.join(' '));
        }
        return [...new Set(found)];
      })()"""
    assert run(inside, "sse", script) == ['{"å": 1} [DONE]']


def path_of(route: Any) -> str:
    found: str = route.request.url.split("/", 3)[3]
    return found


RIVER = {"active": True, "num_layers": 30, "threshold": 0.9, "min_layers": 1}


def answered(inside: Any, **answers: Any) -> None:
    """The page with these answers of the server's."""
    answers = {"river": RIVER, "v1/models": {"data": [{"id": "m"}]}, **answers}
    for path in answers:
        # Playwright counts a handler's arguments: a default would be taken for the request.
        inside.route(f"**/{path}", lambda route: route.fulfill(json=answers[path_of(route)]))
    inside.reload()


def test_where_the_server_drafts_a_request_chooses(inside: Any) -> None:
    answered(inside, river={**RIVER, "mode": "verified", "verify": {"max_tokens": 4}})
    dial = inside.get_by_label("Exit threshold τ", exact=True)
    inside.get_by_text("there is no threshold to turn").wait_for()
    assert not dial.is_visible()
    inside.get_by_label("Answers").select_option("exit")
    assert dial.is_visible()


def test_live_figures_behind_a_proxy_that_offers_no_metrics(inside: Any) -> None:
    stats = {
        **{"num_layers": 30, "tokens": 2, "exit_layers": {"3": 2}, "drafted": 0, "accepted": 0},
        **{"backbone_layers": 6, "skipped_layers": 54},
    }
    answered(inside, **{"river/stats": stats})
    inside.get_by_label("Which tokens").select_option("0")
    inside.locator("#live-depth", has_text="of 30").wait_for()
    assert not inside.locator("#problem").is_visible()
