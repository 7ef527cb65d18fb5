"""The console in Chromium, on a real server with SmolLM2."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from tests.support.server import NAME, RiverServer

pytestmark = pytest.mark.engine

QUESTION = "What is the capital of France? Answer in one sentence."


@pytest.fixture
def console(page: Any, server: RiverServer) -> Any:
    """The console, connected."""
    page.goto(server.url + "/river/console")
    page.get_by_text("left after 1 layer").first.wait_for()
    return page


def limit(console: Any, tokens: int) -> None:
    console.get_by_text("More settings").click()
    console.get_by_label("Tokens at most").fill(str(tokens))


def ask(console: Any, question: str = QUESTION) -> Any:
    """Send with the keyboard alone; returns the finished answer's element."""
    before = console.locator(".message .answer").count()
    console.get_by_label("Message").fill(question)
    console.keyboard.press("Enter")
    console.locator(".message .facts", has_text="first after").nth(before).wait_for()
    return console.locator(".message .answer").nth(before)


def layers(answer: Any) -> list[int]:
    """The exit layer of each token on the page."""
    shown = answer.locator(".token").evaluate_all("all => all.map((t) => t.dataset.layers)")
    return [int(layer) for one in shown for layer in one.split("·")]


def test_a_streamed_answer_is_coloured_by_depth(console: Any, server: RiverServer) -> None:
    limit(console, 24)
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 24,
        "temperature": 0,
        "river": {"trace": True},
    }
    # The first answer fills the prefix cache; what is computed after a hit has another shape, and
    # near-ties may round the other way.
    server.post("/v1/chat/completions", body)
    expected = server.post("/v1/chat/completions", body).json()["choices"][0]
    answer = ask(console)
    assert answer.inner_text() == expected["message"]["content"]
    trace = expected["river_trace"]
    # The end-of-text token has a layer and no text to colour.
    assert layers(answer) in (trace, trace[:-1])
    assert trace[0] == server.get("/river").json()["num_layers"]
    classes = answer.locator(".token").evaluate_all("all => all.map((t) => t.className)")
    assert "backbone" in classes[0]
    assert sum("depth" in name for name in classes) == sum(layer < 30 for layer in layers(answer))


def test_a_stream_says_how_fast_it_comes(console: Any) -> None:
    limit(console, 24)
    console.evaluate(
        """() => {
             window.said = [];
             const messages = document.getElementById('messages');
             new MutationObserver(() => {
               window.said.push(messages.querySelector('.message .facts')?.textContent);
             }).observe(messages, { childList: true, subtree: true, characterData: true });
           }"""
    )
    ask(console)
    said = [line for line in console.evaluate("window.said") if line]
    assert any(
        re.fullmatch(r"\d+ tokens so far · [\d.,]+ tokens per second", line) for line in said
    )


def test_an_adapter_is_chosen_by_its_name(page: Any, server: RiverServer) -> None:
    names = [NAME, "translator"]
    page.route(
        "**/v1/models", lambda route: route.fulfill(json={"data": [{"id": n} for n in names]})
    )
    page.goto(server.url + "/river/console")
    page.get_by_label("Model or adapter").select_option("translator")
    page.get_by_label("Message").fill(QUESTION)
    with page.expect_request("**/v1/chat/completions") as asked:
        page.get_by_role("button", name="Send").click()
    assert asked.value.post_data_json["model"] == "translator"
    page.get_by_role("alert").filter(has_text="translator").wait_for()


def test_a_tokens_depth_is_told_to_pointer_and_keyboard(console: Any) -> None:
    limit(console, 12)
    answer = ask(console)
    tip = console.locator("#tip")
    answer.locator(".token").nth(2).hover()
    depth = answer.locator(".token").nth(2).get_attribute("data-layers")
    assert f"layer {depth} of 30" in tip.inner_text()
    console.get_by_label("Message").focus()
    console.keyboard.press("Shift+Tab")
    assert console.evaluate("document.activeElement.className") == "answer"
    assert "all 30 layers on the backbone" in tip.inner_text()
    console.keyboard.press("ArrowRight")
    console.keyboard.press("ArrowRight")
    assert f"layer {depth} of 30" in tip.inner_text()
    console.keyboard.press("Escape")
    assert not tip.is_visible()


def test_backbone_and_river_side_by_side(console: Any) -> None:
    limit(console, 20)
    console.get_by_role("tab", name="Chat").focus()
    console.keyboard.press("ArrowRight")
    console.get_by_label("Exit threshold τ as a number").fill("-1")
    console.get_by_role("button", name="Run both").click()
    console.locator("#compare-status", has_text="ms per token").wait_for()
    assert set(layers(console.locator("#backbone-answer .answer"))) == {30}
    river = layers(console.locator("#river-answer .answer"))
    assert set(river[1:]) == {1}, "with τ = -1 every token leaves after the first layer"
    marked = console.locator("#river-answer .different").count()
    console.get_by_label("Exit threshold τ as a number").fill("1")
    console.get_by_role("button", name="Run both").click()
    console.get_by_text("All tokens are equal.").wait_for()
    assert console.locator(".answer .different").count() == 0
    assert marked > 0


def test_the_configuration_and_the_default(console: Any, server: RiverServer) -> None:
    shown = console.locator("#configuration").inner_text()
    river = server.get("/river").json()
    for value in (river["quantizer"], river["kernels"][0], str(river["num_layers"]), "MiB"):
        assert value in shown
    try:
        console.get_by_label("Exit threshold τ as a number").fill("0.85")
        console.get_by_role("button", name="Make τ the server's default").click()
        console.get_by_text("now run at 0.85").wait_for()
        assert server.get("/river").json()["threshold"] == 0.85
    finally:
        httpx.patch(server.url + "/river", json={"threshold": river["threshold"]})


def test_live_figures_are_the_servers(console: Any, server: RiverServer) -> None:
    limit(console, 12)
    ask(console)
    console.get_by_label("Which tokens").select_option("0")
    stats = server.get("/river/stats").json()
    bars = console.locator("#histogram .bars")
    label = re.compile(f"Exit depth of {stats['tokens']} tokens")
    console.get_by_role("img", name=label).wait_for()
    assert bars.locator("> *").count() == stats["num_layers"]
    console.get_by_text("As a table").click()
    rows = console.locator("#histogram-table tr").all_inner_texts()
    assert {r.split()[0]: int(r.split()[1].replace(",", "")) for r in rows} == stats["exit_layers"]


def test_refusals_are_said_and_the_console_goes_on(console: Any) -> None:
    limit(console, 100_000)
    console.get_by_label("Message").fill(QUESTION)
    console.get_by_role("button", name="Send").click()
    console.get_by_role("alert").filter(has_text="max_tokens").wait_for()
    console.get_by_label("Tokens at most").fill("4")
    console.get_by_role("button", name="Send").click()
    console.locator(".message .facts", has_text="tokens").wait_for()
    assert console.get_by_role("alert").count() == 0


def test_markup_in_an_answer_stays_text(console: Any) -> None:
    limit(console, 4)
    ask(console, "<img src=x onerror=alert(1)><b>bold</b>")
    assert "<b>bold</b>" in console.locator(".message.user").inner_text()
    assert console.locator(".messages img, .messages b").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_it_fits_the_screen_in_both_themes(
    browser: Any, server: RiverServer, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(server.url + "/river/console")
    page.get_by_text("left after 1 layer").first.wait_for()
    for tab in ("Compare with the backbone", "Chat"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = "getComputedStyle(document.body).backgroundColor"
    preferred = page.evaluate(background)
    page.get_by_label("Theme").select_option("light" if scheme == "dark" else "dark")
    assert page.evaluate(background) != preferred
    page.reload()
    assert page.evaluate(background) != preferred
    context.close()


def test_every_control_has_a_name_and_can_be_reached(console: Any) -> None:
    nameless = console.evaluate(
        """() => [...document.querySelectorAll('button, input, select, textarea')].filter((c) =>
             !c.labels?.length && !c.getAttribute('aria-label') && !c.textContent.trim())
             .map((c) => c.outerHTML)"""
    )
    assert nameless == []
    reached = set()
    console.evaluate("document.body.focus()")
    for _ in range(40):
        console.keyboard.press("Tab")
        reached.add(console.evaluate("document.activeElement.id"))
    visible = (
        "theme open-key threshold threshold-number tab-chat prompt send clear window set-default"
    )
    assert set(visible.split()) <= reached
