"""``river-vllm quantize``: arguments, text, and how the layers are portioned out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.cli.main import build_parser, main
from server.cli.prompts import Prompts
from server.quantize import command
from server.quantize.command import answered


def parse(*arguments: str) -> Any:
    return build_parser().parse_args(["quantize", "model", *arguments])


@pytest.mark.parametrize(("option", "value"), [("--half", "first"), ("--answer-tokens", "1023")])
def test_wrong_arguments_are_named(option: str, value: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["quantize", "model", option, value])
    assert stop.value.code == 2
    assert option in capsys.readouterr().err


class Engine:
    """Answers every prompt with sevens."""

    def answers(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        self.asked = len(prompts)
        return [[7] * tokens for _ in prompts]


def texts(prompts: Prompts, *arguments: str) -> tuple[list[list[int]], Engine]:
    """Prompts and answers as GPTQ reads them."""
    engine, options = Engine(), parse(*arguments).options.text
    return answered(options, engine, prompts), engine


def test_the_text_is_as_long_as_asked_for() -> None:
    prompts = Prompts("file", None, [[1] * 30] * 10)
    found, engine = texts(prompts, "--tokens", "100", "--answer-tokens", "20")
    assert engine.asked == 2
    assert found == [[1] * 30 + [7] * 20] * 2
    found, _ = texts(prompts, "--tokens", "101", "--answer-tokens", "20")
    assert len(found) == 3
    found, _ = texts(prompts, "--tokens", "9999", "--answer-tokens", "20")
    assert len(found) == 10


def test_given_answers_are_taken_cut_and_counted_with_the_length_that_they_have() -> None:
    prompts = Prompts("file", None, [[1, 2], [3]], [[4, 5, 6], [8]])
    found, engine = texts(prompts, "--answer-tokens", "2")
    assert found == [[1, 2, 4, 5], [3, 8]]
    assert not hasattr(engine, "asked")
    prompts = Prompts("file", None, [[1] * 10] * 20, [[8] * 5] * 20)
    found, _ = texts(prompts, "--tokens", "100", "--answer-tokens", "20")
    assert [len(text) for text in found] == [15] * 7


def test_older_weights_that_a_server_finds_first_are_named(tmp_path: Path) -> None:
    shipped, own = tmp_path / "model" / "gptq", tmp_path / "cache" / "gptq"
    assert command._found_before(own, [shipped, own]) is None
    shipped.mkdir(parents=True)
    (shipped / "config.json").write_text("{}")
    assert command._found_before(own, [shipped, own]) == str(shipped)
    assert command._found_before(shipped, [shipped, own]) is None
    assert command._found_before(tmp_path / "elsewhere", [shipped, own]) is None


@pytest.mark.parametrize("arguments", [["quantize"], ["calibrate"]])
def test_a_checkpoint_in_4_bit_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    quantization = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "quantization_config": quantization})
    )
    assert main([*arguments, str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(tmp_path) in line
    assert "in 4 bit" in line
