"""Where GPTQ's weights are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError
from river_vllm.weights.cache import gptq_folders, weights_folder


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RIVER_CACHE_DIR", str(tmp_path / "user"))
    return tmp_path / "user"


def test_beside_a_local_model_then_in_the_users_cache(tmp_path: Path, user: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    config = RiverConfig(quantizer="gptq", group_size=64)
    beside, elsewhere = gptq_folders(config, str(model))
    assert beside == model / "river" / "gptq-g64"
    assert elsewhere.parent.parent == user and elsewhere.name == "gptq-g64"
    assert gptq_folders(config, "someone/some-model") == [user / "someone--some-model" / "gptq-g64"]
    for place in (elsewhere, beside):
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")
        assert weights_folder(config, str(model)) == place


def test_a_folder_has_one_name_whatever_it_is_called_by(
    tmp_path: Path, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models of one name in two folders are two models."""
    config = RiverConfig(quantizer="gptq")
    found = []
    for folder in ("a", "b"):
        model = tmp_path / folder / "model"
        model.mkdir(parents=True)
        monkeypatch.chdir(model.parent)
        names = {gptq_folders(config, name)[1] for name in ("model", "./model", str(model))}
        assert len(names) == 1
        found += names
    assert found[0] != found[1] and found[0].is_relative_to(user)


def test_a_folder_that_is_given_is_taken_and_others_are_made_at_load(tmp_path: Path) -> None:
    assert weights_folder(RiverConfig(quantizer="gptq", weights=str(tmp_path)), "a/b") == tmp_path
    assert weights_folder(RiverConfig(quantizer="hqq"), "a/b") is None


@pytest.mark.parametrize(
    ("cache", "output"),
    [("auto", ""), ("off", " --output DIR"), ("/c", " --output /c/a--b/gptq-g64")],
)
def test_without_weights_the_command_is_named(cache: str, output: str, user: Path) -> None:
    config = RiverConfig(quantizer="gptq", group_size=64, cache_dir=cache)
    with pytest.raises(RiverError) as error:
        weights_folder(config, "a/b")
    command = f"river-vllm quantize a/b --group-size 64 --prompts FILE{output}'"
    assert command in str(error.value) and "\n" not in str(error.value)
