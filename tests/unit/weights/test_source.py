"""Groups made at load, and found again by what they were made from."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from river_vllm.weights import hqq
from river_vllm.weights.cache import WeightCache
from river_vllm.weights.quantizers import QUANTIZERS
from river_vllm.weights.source import QuantizedAtLoad
from tests.unit.weights.test_cache import same
from tests.unit.weights.test_rtn import weights

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
