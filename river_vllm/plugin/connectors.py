"""Checks that vLLM's K/V connector keeps the river's K/V away from exact requests.

A connector may bring K/V blocks from another store or another engine. ``scheduler.isolate`` salts
the hashes of blocks that the river may have written. A connector that finds blocks by
``Request.block_hashes`` alone never gives such a block to an exact request. A connector that finds
blocks by tokens or by a request's name may, and so may one that hands a request's blocks to another
engine. Other connectors are refused. Read in vLLM 0.32, ``distributed/kv_transfer/kv_connector``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BY_BLOCK_HASHES = ("OffloadingConnector", "SimpleCPUOffloadConnector", "MooncakeStoreConnector")
"""Their keys are made of ``Request.block_hashes`` alone."""

_TOKENS = "it finds K/V by tokens, whoever wrote it"
_HANDS_OVER = "it hands a request's K/V to another engine, which cannot tell who wrote it"
_NO_CACHE = "it is no cache of K/V that a request could use"

REFUSED: dict[str, str] = {
    "ExampleConnector": _TOKENS,
    "LMCacheConnectorV1": _TOKENS,
    "LMCacheMPConnector": _TOKENS,
    "HF3FSKVConnector": _TOKENS,
    "FlexKVConnectorV1": "how it finds K/V is decided outside vLLM",
    "NixlConnector": _HANDS_OVER,
    "NixlPullConnector": _HANDS_OVER,
    "NixlPushConnector": _HANDS_OVER,
    "MooncakeConnector": _HANDS_OVER,
    "MoRIIOConnector": _HANDS_OVER,
    "HiSparseConnector": "it serves sparse attention, which River does not carry",
    "DecodeBenchConnector": _NO_CACHE,
    "ExampleHiddenStatesConnector": _NO_CACHE,
}
"""Connectors of vLLM that River refuses, and why."""

MULTI = "MultiConnector"
OFFLOADING_SPECS = (None, "CPUOffloadingSpec")
"""Allowed stores of ``OffloadingConnector``: the host's memory, for this engine alone."""


def refused_connector(transfer: Any) -> str | None:
    """The first connector of a ``KVTransferConfig`` that River refuses, and why; else None."""
    if transfer is None or transfer.kv_connector is None:
        return None
    return _refused(
        transfer.kv_connector,
        transfer.kv_connector_module_path,
        transfer.kv_connector_extra_config,
    )


def _refused(name: str, module: str | None, extra: Mapping[str, Any]) -> str | None:
    if module:
        return f"'{name}' of {module}: how it finds K/V is not known here"
    if name == MULTI:
        children = [
            _refused(
                str(child.get("kv_connector")),
                child.get("kv_connector_module_path"),
                child.get("kv_connector_extra_config") or {},
            )
            for child in extra.get("connectors", ())
        ]
        return next((reason for reason in children if reason is not None), None)
    if name not in BY_BLOCK_HASHES:
        return f"'{name}': {REFUSED.get(name, 'how it finds K/V is not known here')}"
    spec = extra.get("spec_name")
    if name == "OffloadingConnector" and spec not in OFFLOADING_SPECS:
        return f"'{name}' with spec_name '{spec}': only its store in the host's memory was tried"
    return None
