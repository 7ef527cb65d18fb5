"""Which list an engine takes, and what is shipped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from river_vllm.calibrate.shipped import shipped as shipped_calibrations
from river_vllm.config import RiverConfig, load_config_file
from river_vllm.errors import RiverError
from river_vllm.guarantee import ModelRecord
from river_vllm.modes.verified import token_list as token_lists
from river_vllm.modes.verified.token_list import (
    COVERAGE,
    FILE_NAME,
    CountedRecord,
    TokenList,
    list_for,
    read,
    shipped,
)
from river_vllm.weights.fingerprint import fingerprint

COUNTED = CountedRecord(prompts="p", answers=1, tokens=1, coverage=0.999)


def token_list(first: int, *models: ModelRecord, vocabulary: int = 1024) -> TokenList:
    return TokenList.of(np.arange(first, first + 64), vocabulary, models, COUNTED)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Any:
    """vLLM's configuration of a model."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    return SimpleNamespace(
        model=str(model), hf_config=SimpleNamespace(), revision=None, get_vocab_size=lambda: 1024
    )


def test_a_shipped_list_is_known_by_its_models(
    checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ModelRecord(name="o", config_sha256="a", weights_sha256="b")
    same = fingerprint(checkpoint.model)
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    monkeypatch.setattr(token_lists, "shipped", lambda: files)
    token_list(0, other).write(files[0])
    token_list(64, other).write(files[1])
    assert list_for(RiverConfig(), checkpoint) is None
    token_list(64, other, same).write(files[1])
    found = list_for(RiverConfig(), checkpoint)
    assert found is not None
    assert found.ids[0] == 64


def test_the_list_beside_the_weights_goes_first(
    checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    token_list(0, fingerprint(checkpoint.model)).write(file)
    monkeypatch.setattr(token_lists, "shipped", lambda: [file])
    folder = tmp_path / "weights"
    folder.mkdir()
    config = RiverConfig(weights=str(folder))
    found = list_for(config, checkpoint)
    assert found is not None and found.ids[0] == 0
    token_list(128).write(folder / FILE_NAME)
    found = list_for(config, checkpoint)
    assert found is not None and found.ids[0] == 128
    token_list(128, vocabulary=512).write(folder / FILE_NAME)
    with pytest.raises(RiverError, match="512 tokens, the model has 1024"):
        list_for(config, checkpoint)


def test_every_model_with_a_shipped_calibration_has_a_list() -> None:
    """Known by the same hashes, small, and short."""
    listed = {}
    for file in shipped():
        assert file.stat().st_size < 40_000
        found = read(file)
        assert found.counted.coverage >= COVERAGE
        assert found.counted.tokens >= 10_000
        assert found.tokens <= found.vocabulary / 2
        listed |= {model.name: model for model in found.models}
    for name, file in shipped_calibrations().items():
        model = load_config_file(file)["calibration"]["model"]
        assert listed[name].proves(ModelRecord(**model))
