"""A packed weight as bytes: what went in comes out, and nothing else ever does."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError
from river_vllm.kernels.groups import GroupedWeight
from river_vllm.weights import hqq, packed
from river_vllm.weights.cache import WeightCache, cache_folders, gptq_folders, weights_folder
from river_vllm.weights.packed import from_bytes, pack_codes, to_bytes
from river_vllm.weights.quantizers import QUANTIZERS
from river_vllm.weights.source import QuantizedAtLoad
from tests.unit.weights.support import same, weights


def grouped(quantizer: str = "hqq") -> GroupedWeight:
    return QUANTIZERS[quantizer](weights(16, 128), 32)


@pytest.mark.parametrize("quantizer", sorted(QUANTIZERS))
def test_what_was_saved_comes_back_to_the_bit(quantizer: str) -> None:
    weight = grouped(quantizer)
    back = from_bytes(to_bytes(weight, "k"), "k")
    for name in ("codes", "scales", "zeros"):
        before, after = getattr(weight, name), getattr(back, name)
        assert before.dtype == after.dtype and torch.equal(before, after)


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9, 0.999])
def test_any_changed_byte_is_noticed(where: float) -> None:
    data = bytearray(to_bytes(grouped(), "k"))
    data[int(where * len(data))] ^= 1
    with pytest.raises(RiverError):
        from_bytes(bytes(data), "k")


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_file_that_is_cut_off_or_under_another_name_is_noticed(length: int) -> None:
    data = to_bytes(grouped(), "k")
    with pytest.raises(RiverError):
        from_bytes(data[:length], "k")
    with pytest.raises(RiverError, match="checksum"):
        from_bytes(data, "other")


MADE = grouped()


@pytest.mark.parametrize(
    "weight",
    [
        GroupedWeight(MADE.codes, MADE.scales, MADE.zeros[:, :1]),
        GroupedWeight(MADE.codes, MADE.scales[:8], MADE.zeros[:8]),
        GroupedWeight(MADE.codes, MADE.scales[:, :0], MADE.zeros[:, :0]),
        GroupedWeight(MADE.codes, MADE.scales[:, :3], MADE.zeros[:, :3]),
        GroupedWeight(MADE.codes, MADE.scales, MADE.zeros.double()),
        GroupedWeight(MADE.codes.int(), MADE.scales, MADE.zeros),
    ],
    ids=["zeros", "rows", "no group", "uneven", "float64", "int32"],
)
def test_a_file_that_was_made_on_purpose_is_no_weight(weight: GroupedWeight) -> None:
    """Its checksum is right, and kernels would read past its end."""
    tensors = {"codes": pack_codes(weight.codes), "scales": weight.scales.bfloat16()}
    tensors["zeros"] = weight.zeros.clone()
    tensors["checksum"] = packed._checksum(tensors, "k")
    with pytest.raises(RiverError, match="scales"):
        from_bytes(save(tensors), "k")


KEY = "0123abcd"


def blocked(folder: Path) -> Path:
    """A folder that nobody can make, not even root: there is a file in its place."""
    folder.write_text("not a folder")
    return folder


def test_all_folders_are_read_and_the_first_writable_is_written(tmp_path: Path) -> None:
    first, second = blocked(tmp_path / "first"), tmp_path / "second"
    cache = WeightCache([first, second])
    cache.put(KEY, grouped())
    assert cache.writes_to == second
    assert same(WeightCache([first, second]).get(KEY), grouped())
    nowhere = WeightCache([first])
    nowhere.put(KEY, grouped())
    assert (nowhere.writes_to, nowhere.get(KEY)) == (None, None)


@pytest.mark.parametrize("damage", ["cut", "folder"])
def test_a_damaged_file_is_named_and_made_again(
    damage: str, tmp_path: Path, warnings: list[str]
) -> None:
    cache = WeightCache([tmp_path])
    cache.put(KEY, grouped())
    (path,) = tmp_path.iterdir()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    else:
        path.unlink()
        path.mkdir()
    assert cache.get(KEY) is None
    assert str(path) in warnings[-1]
    if damage == "cut":
        cache.put(KEY, grouped())
        assert same(cache.get(KEY), grouped())


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path: Path) -> None:
    weight = grouped()
    seen: list[bool] = []

    def write() -> None:
        for _ in range(20):
            WeightCache([tmp_path]).put(KEY, weight)
            seen.append(same(WeightCache([tmp_path]).get(KEY), weight))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(seen) and len(seen) == 80
    assert len(list(tmp_path.iterdir())) == 1


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RIVER_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    user = tmp_path / "xdg" / "river-vllm"
    assert cache_folders("off", str(tmp_path)) == []
    assert cache_folders("/some/where", str(tmp_path)) == [Path("/some/where")]
    assert cache_folders("auto", str(tmp_path)) == [tmp_path / "river", user]
    assert cache_folders("auto", "someone/some-model") == [user]


def test_a_folder_that_may_not_be_read_is_said_once(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    cache = WeightCache([tmp_path])
    assert [cache.get(KEY), cache.get("other")] == [None, None]
    assert len(warnings) == 1 and f"'{tmp_path}' cannot be read" in warnings[0]


LAYER = nn.Module()
WEIGHT = weights(16, 128)


def source(folder: Path, quantizer: str = "hqq", group_size: int = 128) -> QuantizedAtLoad:
    return QuantizedAtLoad(quantizer, group_size, WeightCache([folder]))


def counts(of: QuantizedAtLoad) -> tuple[int, int]:
    report = of.report()
    return report["made"], report["loaded"]


@pytest.mark.parametrize("integer", [False, True])
def test_the_second_start_loads_what_the_first_made(integer: bool, tmp_path: Path) -> None:
    first, second = source(tmp_path), source(tmp_path)
    made = first.groups(LAYER, WEIGHT, 32, integer)
    loaded = second.groups(LAYER, WEIGHT, 32, integer)
    assert (counts(first), counts(second)) == ((1, 0), (0, 1))
    assert same(loaded, made)
    assert same(made, QUANTIZERS["hqq"](WEIGHT, 32, integer))
    without = QuantizedAtLoad("hqq", 128, WeightCache([]))
    assert same(without.groups(LAYER, WEIGHT, 32, integer), made)
    assert without.report() == {"made": 1, "loaded": 0, "folder": None}


def test_a_changed_weight_or_setting_is_made(tmp_path: Path) -> None:
    source(tmp_path).groups(LAYER, WEIGHT, 32, False)
    changed = WEIGHT.clone()
    changed[0, 0] += 1
    for quantizer, weight, group, integer in (
        ("hqq", changed, 32, False),
        ("hqq", WEIGHT[:8], 32, False),
        ("hqq", WEIGHT, 64, False),
        ("hqq", WEIGHT, 32, True),
        ("rtn", WEIGHT, 32, False),
    ):
        later = source(tmp_path, quantizer)
        found = later.groups(LAYER, weight, group, integer)
        assert counts(later) == (1, 0)
        assert same(found, QUANTIZERS[quantizer](weight, group, integer))


def test_a_changed_quantiser_is_not_given_its_older_selfs_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source(tmp_path).groups(LAYER, WEIGHT, 32, False)
    text = Path(hqq.__file__).read_text() + "\n"
    original = __import__("inspect").getsource
    monkeypatch.setattr(
        "inspect.getsource", lambda module: text if module is hqq else original(module)
    )
    later = source(tmp_path)
    later.groups(LAYER, WEIGHT, 32, False)
    assert counts(later) == (1, 0)


@pytest.mark.parametrize(("shape", "group"), [((16, 128), 64), ((8, 128), 32), ((16, 64), 32)])
def test_a_weight_of_another_size_under_its_name_is_made_again(
    shape: tuple[int, int], group: int, tmp_path: Path
) -> None:
    """A checkpoint's folder may bring such a file: kernels would read past its end."""
    first = source(tmp_path)
    cache = WeightCache([tmp_path])
    cache.put(first._key(WEIGHT, 32, False), QUANTIZERS["hqq"](weights(*shape), group))
    assert same(first.groups(LAYER, WEIGHT, 32, False), QUANTIZERS["hqq"](WEIGHT, 32))
    assert counts(first) == (1, 0)


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
