"""Prompts, bodies and schedules: the same seed, the same load."""

from __future__ import annotations

import itertools
import json
import random
import statistics
from pathlib import Path

import pytest

from server.bench.arrivals import schedule
from server.bench.body import BodyOptions, build_body
from server.bench.datasets import WARM_UP, Prompt, RandomWords, Span, load_jsonl
from server.bench.endpoint import Endpoint, base_url, read_key
from server.bench.errors import BenchError
from server.bench.settings import RequestSettings

RANDOM = RandomWords(Span(4, 9), Span(2, 5), seed=1)


def test_random_prompts_are_a_function_of_seed_part_and_index():
    again = RandomWords(Span(4, 9), Span(2, 5), seed=1)
    other = RandomWords(Span(4, 9), Span(2, 5), seed=2)
    prompts = [RANDOM.prompt(i, "a") for i in range(20)]
    assert prompts == [again.prompt(i, "a") for i in range(20)]
    assert prompts != [other.prompt(i, "a") for i in range(20)]
    assert len({prompt.content for prompt in prompts}) == 20


def test_random_lengths_keep_their_bounds_and_reach_them():
    prompts = [RANDOM.prompt(i, "a") for i in range(200)]
    assert {len(prompt.content.split()) for prompt in prompts} == set(range(4, 10))
    assert {prompt.max_tokens for prompt in prompts} == set(range(2, 6))


def test_levels_have_equal_lengths_but_no_equal_prompts():
    a, b = ([RANDOM.prompt(i, part) for i in range(20)] for part in ("a", "b"))
    assert [len(p.content.split()) for p in a] == [len(p.content.split()) for p in b]
    assert [p.max_tokens for p in a] == [p.max_tokens for p in b]
    assert not {p.content for p in a} & {p.content for p in b}


def write(tmp_path: Path, *rows: object) -> str:
    path = tmp_path / "rows.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def load(path: str, field: str = "prompt", chat: bool = True):
    return load_jsonl(path, field, Span(7, 7), 0, chat)


def test_jsonl_rows(tmp_path: Path):
    messages = [{"role": "user", "content": "hi"}]
    path = write(
        tmp_path,
        {"prompt": "one\u2028line", "max_tokens": 3, "answer": "unused"},
        "",
        {"messages": messages},
    )
    rows = load(path)
    assert [rows.prompt(i, "a") for i in range(3)] == [
        Prompt("one\u2028line", 3),
        Prompt(messages, 7),
        Prompt("one\u2028line", 3),
    ]
    assert rows.prompt(0, WARM_UP) == Prompt(messages, 7)
    assert (rows.repeats(2), rows.repeats(3)) == (False, True)


def test_jsonl_field_of_another_name(tmp_path: Path):
    rows = load(write(tmp_path, {"question": "why?"}), "question")
    assert rows.prompt(0, "a").content == "why?"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "line 2"),
        ('{"prompt": "a", "x": NaN}', "NaN is not JSON"),
        (r'{"prompt": "\ud800"}', "surrogates not allowed"),
        ([1], "line 2: expected a JSON object"),
        ({"text": "a"}, "'prompt' = None"),
        ({"prompt": ""}, "'prompt' = ''"),
        ({"prompt": "a", "max_tokens": 0}, "'max_tokens' = 0"),
        ({"prompt": "a", "max_tokens": True}, "'max_tokens' = True"),
        ({"messages": []}, "'messages'"),
        ({"messages": ["hi"]}, "objects with a 'role'"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: object, says: str):
    with pytest.raises(BenchError, match=r"--dataset .*rows\.jsonl") as error:
        load(write(tmp_path, {"prompt": "fine"}, row))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_messages_need_the_chat_route(tmp_path: Path):
    path = write(tmp_path, {"messages": [{"role": "user", "content": "hi"}]})
    with pytest.raises(BenchError, match="--api chat"):
        load(path, chat=False)


def test_missing_and_empty_files(tmp_path: Path):
    with pytest.raises(BenchError, match="No such file"):
        load(str(tmp_path / "none.jsonl"))
    with pytest.raises(BenchError, match="no rows"):
        load(write(tmp_path, ""))


def test_chat_body():
    body = build_body(BodyOptions(), "m", Prompt("hi", 5), "salt")
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_the_limit_under_its_newer_name():
    body = build_body(BodyOptions(max_completion_tokens=True), "m", Prompt("hi", 5), "salt")
    assert body["max_completion_tokens"] == 5
    assert "max_tokens" not in body


def test_completions_body_with_every_option():
    options = BodyOptions(
        api="completions",
        temperature=0.5,
        ignore_eos=True,
        chunk_usage=True,
        cache_salt=True,
        river={"threshold": 0.9},
        extra={"top_p": 0.8},
    )
    body = build_body(options, "m", Prompt("hi", 5), "salt")
    assert body == {
        "model": "m",
        "prompt": "hi",
        "max_tokens": 5,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "ignore_eos": True,
        "cache_salt": "salt",
        "river": {"threshold": 0.9},
        "top_p": 0.8,
    }
    assert build_body(options, "m", Prompt("hi", 5), "s", {"enabled": False})["river"] == {
        "enabled": False
    }


def test_sides_ask_the_same_with_salts_of_their_own():
    settings = RequestSettings(RANDOM, BodyOptions(cache_salt=True), 0, 1.0, True)
    endpoint = Endpoint("http://x/v1", "m")
    a, b = (settings.plan(endpoint, "compare", 3, side).body for side in "AB")
    assert a.pop("cache_salt") != b.pop("cache_salt")
    assert a == b


def test_cancelled_share_is_seeded_and_near_what_was_asked():
    """800 draws at 0.25: 5 standard deviations of the binomial are 61, so chance alone would
    fail this for one seed in a million; the seed is fixed."""
    settings = RequestSettings(RANDOM, BodyOptions(), 0, 1.0, True, cancel_rate=0.25)
    endpoint = Endpoint("http://x/v1", "m")
    plans = [settings.plan(endpoint, "a", i).cancel_after for i in range(800)]
    assert plans == [settings.plan(endpoint, "a", i).cancel_after for i in range(800)]
    assert abs(sum(plan is not None for plan in plans) - 200) <= 61


def test_poisson_schedule():
    """2000 gaps of mean 1/4: 4 standard errors of the mean are 9 %, of the spread likewise."""
    times = list(itertools.islice(schedule(4.0, "poisson", 3), 2001))
    assert times == list(itertools.islice(schedule(4.0, "poisson", 3), 2001))
    assert times != list(itertools.islice(schedule(4.0, "poisson", 4), 2001))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert times[0] == 0.0
    assert statistics.fmean(gaps) == pytest.approx(0.25, rel=0.09)
    assert statistics.pstdev(gaps) == pytest.approx(0.25, rel=0.15)


def test_constant_schedule():
    assert list(itertools.islice(schedule(4.0, "constant", 0), 4)) == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/", "http://h:8000/v1"),
        ("http://h:8000/v1/", "http://h:8000/v1"),
        ("https://h/api/v4", "https://h/api/v4"),
    ],
)
def test_base_url(text: str, base: str):
    assert base_url(text) == base


@pytest.mark.parametrize(
    "text",
    [
        "h:8000",
        "ftp://h",
        "http://",
        "http://u:p@h",
        "http://h/v1/chat/completions",
        "http://h?a=1",
    ],
)
def test_bad_url(text: str):
    with pytest.raises(BenchError, match="URL"):
        base_url(text)


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("OTHER", "from-env")
    file = tmp_path / "key"
    file.write_text("from-file\n")
    assert read_key(None, None) is None
    assert read_key("OTHER", None) == "from-env"
    assert read_key(None, str(file)) == "from-file"
    monkeypatch.setenv("OPENAI_API_KEY", "usual")
    assert read_key(None, None) == "usual"
    file.write_text("\n")
    for variable, path in (("UNSET_VARIABLE", None), (None, str(file)), (None, str(tmp_path))):
        with pytest.raises(BenchError, match="--api-key"):
            read_key(variable, path)


def test_a_key_is_not_in_the_representation():
    assert "secret" not in repr(Endpoint("http://h/v1", "m", "secret"))


def test_span_picks_both_ends():
    chance = random.Random(0)
    assert {Span(1, 2).pick(chance) for _ in range(50)} == {1, 2}
