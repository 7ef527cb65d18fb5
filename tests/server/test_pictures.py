"""Pictures over HTTP: a chat about a PNG, streamed, and one that is no picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import engines
from tests.support.engines import generated, greedy
from tests.support.families import VOCABULARY, make_checkpoint
from tests.support.pictures import broken_png, data_url, picture, png, save_processor
from tests.support.rounding import same_up_to_a_near_tie
from tests.support.server import NAME, RiverServer

pytestmark = pytest.mark.engine

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
TOKENS = 32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(ARCHITECTURE, tmp_path_factory.mktemp("sees"))
    save_processor(ARCHITECTURE, folder, VOCABULARY)
    return folder


@pytest.fixture(scope="module")
def stock(checkpoint: Path) -> Any:
    return engines.stock_engine(checkpoint, limit_mm_per_prompt={"image": 2, "video": 0})


@pytest.fixture(scope="module")
def seeing(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RiverServer]:
    log = tmp_path_factory.mktemp("seeing") / "log.txt"
    options = (
        *("--enforce-eager", "--max-model-len", "512", "--max-logprobs", "4"),
        *("--limit-mm-per-prompt", '{"image": 2, "video": 0}'),
        *("--river-verify", "3", "--river-draft", "fixed", "--river-max-rows", "all"),
    )
    with RiverServer(checkpoint, log, options) as running:
        yield running


def messages(*urls: str) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}]


def body(*urls: str, **changes: Any) -> dict[str, Any]:
    greedily = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
    return {"model": NAME, "messages": messages(*urls), **greedily, **changes}


@pytest.mark.parametrize("pictures", [1, 2])
def test_a_chat_about_pictures(seeing: RiverServer, stock: Any, pictures: int) -> None:
    """Streamed, with drafts: stock vLLM's tokens."""
    urls = [data_url(png(picture(seed))) for seed in range(pictures)]
    answer = seeing.post("/v1/chat/completions", body(*urls, stream=True, return_token_ids=True))
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if "{" in line]
    events = [json.loads(line) for line in lines]
    found = [t for e in events for c in e["choices"] for t in c.get("token_ids") or ()]
    (output,) = stock.chat([messages(*urls)], greedy(TOKENS, logprobs=2), use_tqdm=False)
    assert same_up_to_a_near_tie(found, generated(output.outputs[0])) > TOKENS / 2
    assert events[-1]["river"]["mode"] == "verified"
    assert 0 < events[-1]["river"]["accepted"] < events[-1]["river"]["drafted"]


GOOD = png(picture(0))


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(data_url(b"no picture"), id="text"),
        pytest.param(data_url(GOOD[: len(GOOD) // 2]), id="half a PNG"),
        pytest.param(data_url(broken_png()), id="a broken PNG"),
        pytest.param(data_url(png(picture(0, 1, 700))), id="too narrow for the model"),
        pytest.param(data_url(b""), id="nothing"),
        pytest.param("data:image/png;base64,%%%", id="no base64"),
        pytest.param("iVBORw0KGgo=", id="no URL"),
    ],
)
def test_what_is_no_picture_is_refused(seeing: RiverServer, url: str) -> None:
    response = seeing.post("/v1/chat/completions", body(url))
    assert response.status_code == 400
    assert response.json()["error"]["message"]
    good = seeing.post("/v1/chat/completions", body(data_url(GOOD), max_tokens=2))
    assert good.status_code == 200
