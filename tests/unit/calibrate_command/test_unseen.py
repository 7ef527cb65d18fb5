"""Prompts that the river's weights were made with prove nothing about others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.calibrate.command import seen_by_weights
from server.cli.main import main
from server.cli.prompts import Prompts, from_files
from server.quantize import command
from tests.unit.calibrate_command.test_prompts import Tokenizer


class Engine:
    """Stands for ``QuantizingEngine``: a model of one layer."""

    def __init__(self, *_: object) -> None:
        model = SimpleNamespace(get_total_num_hidden_layers=lambda: 1)
        self.llm = SimpleNamespace(
            get_tokenizer=Tokenizer, llm_engine=SimpleNamespace(model_config=model)
        )

    def answers(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        return [[7] * tokens for _ in prompts]

    def quantize(self, texts: list[list[int]], *_: object) -> Iterator[dict[str, Any]]:
        yield {"tokens": sum(map(len, texts)), "output_error": 0.1}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "rows.txt"
    file.write_text("\n".join(f"row {number}" for number in range(40)))
    return file


def quantized(file: Path, monkeypatch: pytest.MonkeyPatch, *half: str) -> Path:
    """The folder that ``river-vllm quantize`` writes."""
    monkeypatch.setattr(command, "prepare", lambda: None)
    monkeypatch.setattr("server.quantize.command.QuantizingEngine", Engine)
    model, output = file.parent / "model", file.parent / "weights"
    model.mkdir()
    (model / "config.json").write_text("{}")
    words = (str(model), "--prompts", str(file), "--output", str(output))
    assert main(["quantize", *words, *half]) == 0
    return output


def prompts(file: Path, half: str | None = None) -> Prompts:
    return from_files([file], Tokenizer(), 100, 0, half)


@pytest.mark.parametrize(
    ("made", "half", "seen"),
    [
        (None, None, True),
        (None, "second", True),
        ("first", None, True),
        ("first", "first", True),
        ("first", "second", False),
        ("second", "first", False),
    ],
)
def test_rows_of_the_same_files(
    file: Path, monkeypatch: pytest.MonkeyPatch, made: str | None, half: str | None, seen: bool
) -> None:
    folder = quantized(file, monkeypatch, *(() if made is None else ("--half", made)))
    said = seen_by_weights(folder, prompts(file, half), half)
    assert (said is not None) is seen
    assert said is None or "rows.txt" in said


def test_one_of_several_files_in_any_order(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = file.with_name("second.txt")
    second.write_text("\n".join(f"other {number}" for number in range(40)))
    folder = quantized(file, monkeypatch, "--prompts", str(second))
    for files in ([second], [second, file]):
        made = from_files(files, Tokenizer(), 100, 0)
        assert seen_by_weights(folder, made, None) is not None


def test_other_prompts(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = quantized(file, monkeypatch)
    file.write_text("other rows\n" * 10)
    assert seen_by_weights(folder, prompts(file), None) is None
    assert seen_by_weights(folder, Prompts("made by the model", None, [[1]]), None) is None


def test_weights_of_another_program(file: Path, tmp_path: Path) -> None:
    assert seen_by_weights(tmp_path, prompts(file), None) is None
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "awq"}}')
    assert seen_by_weights(tmp_path, prompts(file), None) is None
