"""The whole command: real lm-eval, in its own process, against a small server."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.eval.conftest import write_rows
from tests.eval.fake import LAYERS, TOKENS

OFF, ON = '{"enabled": false}', '{"threshold": 0.9}'
SIDES = ("--river", OFF, "--against-river", ON)


def asked(body: dict[str, Any]) -> int:
    """The n of the word problem that a request asks."""
    return int(body["prompt"].rpartition("What is ")[2].split()[0])


def sum_unless(*wrong: int):
    """Answers right, but for these problems with the river on."""

    def respond(body: dict[str, Any]) -> str:
        on = "threshold" in body["river"]
        return "#### 999" if on and asked(body) in wrong else f" Easy.\n#### {2 * asked(body)}.00"

    return respond


def test_gsm8k_paired_and_read_again(evaluate, fake, sums: Path, tmp_path: Path):
    server = fake(sum_unless(7, 9))
    words = ("--data", sums, "--num-fewshot", 2, "--limit", 7, "--output", tmp_path / "kept")
    ran = evaluate("river_gsm8k", "--base-url", server.url, *SIDES, *words)
    assert ran.status == 0, ran.err
    ours, its = server.asked_with(enabled=False), server.asked_with(threshold=0.9)
    assert len(ours) == len(its) == 7
    assert next(body for body in ours if asked(body) == 3) == {
        "model": "fake",
        "prompt": "Question: What is 1 + 1?\nAnswer: It is <<1+1=2>>.\n#### 2\n\n"
        "Question: What is 2 + 2?\nAnswer: It is <<2+2=4>>.\n#### 4\n\n"
        "Question: What is 3 + 3?\nAnswer:",
        "max_tokens": 512,
        "temperature": 0.0,
        "stop": ["Question:"],
        "seed": 1234,
        "river": {"enabled": False},
    }
    assert [asked(body) for body in ours] == [asked(body) for body in its]
    depths = {side: told["depth"] for side, told in ran.document["sides"].items()}
    assert depths["A"]["mean_exit_layer"] == LAYERS
    assert depths["B"] == {
        "tokens": 7 * TOKENS,
        "num_layers": LAYERS,
        "mean_exit_layer": LAYERS / 2,
        "held": 7,
    }
    for figure in ran.document["figures"]:
        assert (figure["a"], figure["only_a"], figure["only_b"]) == (1.0, ["7", "9"], [])
        assert (figure["problems"], figure["p_value"], figure["identical"]) == (7, 0.5, 5)
    assert [one["filter"] for one in ran.document["figures"]] == ["flexible", "strict"]
    assert "losses of B: 7, 9" in ran.out

    again = evaluate("--samples", tmp_path / "kept" / "A", tmp_path / "kept" / "B")
    assert (again.status, again.document["figures"]) == (0, ran.document["figures"]), again.err
    gate = ("--samples", tmp_path / "kept" / "A", tmp_path / "kept" / "B", "--max-loss", 28)
    assert evaluate(*gate).status == 1
    assert evaluate(*gate[:-1], 29).status == 0


def test_by_chat_with_a_key_on_two_servers(evaluate, fake, sums: Path, monkeypatch):
    """Both sides have the same river, and B's server another mind."""

    def respond(body: dict[str, Any], wrong: int = 0) -> str:
        found = int(body["messages"][-1]["content"].split()[2])
        return f"Easy.\n#### {0 if found == wrong else 2 * found}"

    one = fake(respond, key="secret")
    two = fake(lambda body: respond(body, wrong=2), key="secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    words = ("--data", sums, "--chat", "--concurrency", 2)
    ran = evaluate("river_gsm8k_chat", "--base-url", one.url, "--against", two.url + "/v1", *words)
    assert ran.status == 0, ran.err
    assert two.paths == {"/v1/chat/completions"}
    (message,) = one.bodies[0]["messages"]
    assert message["content"].endswith("on a last line of this form:\n#### NUMBER")
    for figure in ran.document["figures"]:
        assert (figure["metric"], figure["a"]) == ("exact_match", 1.0)
        assert figure["only_a"] == ["2"]
    assert "secret" not in json.dumps(ran.document) + ran.out + ran.err


LIKELIHOOD = """
task: choices
custom_dataset: !function server.eval.harness.load
dataset_kwargs: {fields: [question, answer], examples: 0}
output_type: multiple_choice
test_split: test
doc_to_text: question
doc_to_target: 0
doc_to_choice: ["yes", "no"]
"""


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's process runs here: its imports take ten seconds, here once for all cases."""
    from server.eval import harness

    def run(_: Any, *, input: bytes, **__: Any) -> SimpleNamespace:
        monkeypatch.setattr("sys.stdin", io.StringIO(input.decode()))
        return SimpleNamespace(returncode=harness.main())

    monkeypatch.setattr("server.eval.sides.subprocess.run", run)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (["choices"], "multiple_choice", 2),
        (["no_such_task"], "'no_such_task': expected river_gsm8k", 2),
        (["river_gsm8k_chat", "--num-fewshot", "3"], "river_gsm8k_chat", 2),
        (["river_gsm8k", "--num-fewshot", "10"], "10 examples", 2),
        (["river_humaneval"], "river_humaneval was removed", 2),
        (["river_gsm8k", "--limit", "1"], "no such model", 1),
    ],
)
def test_what_is_refused(
    evaluate, fake, sums: Path, tmp_path: Path, words: list[str], said: str, status: int
):
    """The last one by the server, three times."""
    (tmp_path / "choices.yaml").write_text(LIKELIHOOD)

    def respond(body: dict[str, Any]) -> str:
        raise ValueError("no such model")

    server = fake(respond)
    more = ("--data", sums, "--include-path", tmp_path, *SIDES)
    ran = evaluate(*words, "--base-url", server.url, *more)
    assert ran.status == status, ran.err
    assert said in ran.err
    assert (ran.out, ran.document) == ("", None)
    assert len(server.bodies) == (3 if status == 1 else 0)


@pytest.mark.parametrize(
    ("row", "said"),
    [("[1]", "line 2"), ("{", "line 2"), ("{}", "'question'")],
)
def test_bad_rows(tmp_path: Path, row: str, said: str):
    from river_vllm.errors import RiverError
    from server.eval.harness import load

    file = write_rows(tmp_path / "bad.jsonl", [{"question": "?", "answer": "#### 1"}])
    file.write_text(file.read_text() + row + "\n")
    with pytest.raises(RiverError, match=r"--data '.*bad\.jsonl") as error:
        load(["question", "answer"], 0, str(file))
    assert said in str(error.value)
