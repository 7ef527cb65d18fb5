"""Prompts from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from river_vllm.errors import RiverError
from server.cli.prompts import from_files


class Tokenizer:
    """A token per character; chats are marked."""

    chat_template = "there is one"

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return ([0] if add_special_tokens else []) + [ord(c) for c in text]

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        assert options == {"add_generation_prompt": True, "tokenize": False}
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


def _texts(path: Path, **options: Any) -> list[str]:
    options = {"longest": 100, "seed": 0, **options}
    found = from_files([path], Tokenizer(), **options)
    return ["".join(map(chr, tokens)) for tokens in found.tokens]


def _jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_kind_of_row(tmp_path: Path) -> None:
    file = _jsonl(
        tmp_path / "a.jsonl",
        {"prompt": "def f"},
        {"question": "why?", "prompt": "not this"},
        {"messages": [{"role": "user", "content": "hi"}]},
    )
    assert sorted(_texts(file)) == ["\0def f", "<user>hi<assistant>", "<user>why?<assistant>"]


def test_order_is_shuffled_by_the_seed_and_long_prompts_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\n".join(["x" * 101, *map(str, range(50))]))
    assert _texts(file) == _texts(file)
    assert _texts(file) != _texts(file, seed=1)
    assert sorted(_texts(file)) == sorted(f"\0{i}" for i in range(50))


def test_halves_go_by_the_lines_of_the_file_share_nothing_and_make_up_the_whole(tmp_path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("1\n\n3\n4\n\n6\n7\n")
    assert sorted(_texts(file, half="first")) == ["\x001", "\x003", "\x007"]
    assert sorted(_texts(file, half="second")) == ["\x004", "\x006"]
    assert len(_texts(file)) == 5


def test_given_answers_stay_with_their_prompts(tmp_path: Path) -> None:
    file = _jsonl(tmp_path / "a.jsonl", *({"prompt": f"p{i}", "answer": f"a{i}"} for i in range(9)))
    found = from_files([file], Tokenizer(), 100, 0, answer_field="answer").head(5)
    assert found.answers is not None
    assert len(found.tokens) == len(found.answers) == 5
    assert [p[2] for p in found.tokens] == [a[1] for a in found.answers]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one row"),
        ('{"prompt": "a"}\n{"prompt"', "line 2"),
        ('{"text": "a"}', r"line 1: .*messages, question, prompt.* text"),
        ('{"prompt": 3}', "'prompt' = 3"),
        ('{"messages": [3]}', "'messages'"),
        ("x" * 200, "100 tokens"),
        (None, "No such file"),
    ],
)
def test_errors_name_the_file_and_the_line(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "bad.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(RiverError, match=message) as error:
        _texts(file)
    assert "bad.jsonl" in str(error.value)


def test_missing_answers(tmp_path: Path) -> None:
    file = _jsonl(tmp_path / "a.jsonl", {"prompt": "a"})
    with pytest.raises(RiverError, match="line 1: 'answer' = None"):
        from_files([file], Tokenizer(), 100, 0, answer_field="answer")
