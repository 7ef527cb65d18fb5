"""Where API keys come from."""

from __future__ import annotations

import pytest

from river_vllm.errors import RiverError
from server.cli.options import api_keys, metrics_keys
from tests.unit.cli.support import parse


def test_the_first_of_six_places_that_has_keys(tmp_path, monkeypatch) -> None:
    path, named = tmp_path / "keys", tmp_path / "named"
    path.write_text("file-1\n\n  file-2  \n")
    named.write_text("named")
    args = ("--api-key", "line-1", "line-2", "--api-key-file", str(named))
    monkeypatch.setenv("RIVER_API_KEY", "river")
    monkeypatch.setenv("VLLM_API_KEY", "vllm")
    monkeypatch.setenv("RIVER_API_KEY_FILE", str(path))
    assert api_keys(parse(*args)) == ["line-1", "line-2"]
    assert api_keys(parse(*args[3:])) == ["named"]
    assert api_keys(parse()) == ["file-1", "file-2"]
    monkeypatch.delenv("RIVER_API_KEY_FILE")
    assert api_keys(parse()) == ["river"]
    monkeypatch.setenv("RIVER_API_KEY", "")  # no key
    assert api_keys(parse()) == ["vllm"]
    monkeypatch.delenv("VLLM_API_KEY")
    assert api_keys(parse()) == []


@pytest.mark.parametrize("content", [None, b" \n\n", b"\xff\xfe\x00"])
def test_a_key_file_without_a_key_never_opens_the_server(tmp_path, content: bytes | None) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RiverError, match=str(path)):
        api_keys(parse("--api-key-file", str(path)))


@pytest.mark.parametrize("name", ["--api-key-file", "RIVER_API_KEY_FILE"])
def test_an_empty_name_of_a_key_file_never_opens_the_server(name: str, monkeypatch) -> None:
    """``--api-key-file "$UNSET"``, and a variable that a wrapper passes on."""
    option = name.startswith("--")
    if not option:
        monkeypatch.setenv(name, "")
    with pytest.raises(RiverError, match=f"{name} is empty"):
        api_keys(parse(*([name, ""] if option else [])))


def test_an_empty_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--api-key "$UNSET"`` must not turn authentication off."""
    monkeypatch.setenv("RIVER_API_KEY", "river")
    with pytest.raises(RiverError):
        api_keys(parse("--api-key", ""))


def read_metrics_keys(*argv: str) -> list[str]:
    args = parse("--api-key", "all", *argv)
    args.api_key = api_keys(args)
    return metrics_keys(args)


def test_metrics_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch) -> None:
    assert read_metrics_keys() == []
    monkeypatch.setenv("RIVER_METRICS_KEY", "variable")
    assert read_metrics_keys() == ["variable"]
    path = tmp_path / "keys"
    path.write_text("file-1\nfile-2\n")
    monkeypatch.setenv("RIVER_METRICS_KEY_FILE", str(path))
    assert read_metrics_keys() == ["file-1", "file-2"]
    (tmp_path / "named").write_text("named")
    assert read_metrics_keys("--metrics-key-file", str(tmp_path / "named")) == ["named"]


def test_a_metrics_key_that_protects_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIVER_METRICS_KEY", "all")
    with pytest.raises(RiverError, match="among the API keys"):
        read_metrics_keys()
    args = parse()
    args.api_key = api_keys(args)
    with pytest.raises(RiverError, match="without an API key"):
        metrics_keys(args)
