"""Provisioned data source and dashboards."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.files import DASHBOARDS, DEPLOY, compose, load, walk
from tests.deploy.metrics import known_series, names_in, parsed_names
from tests.deploy.test_prometheus import RECORDS

PROVISIONING = DEPLOY / "grafana" / "provisioning"
SOURCE = load(PROVISIONING / "datasources" / "prometheus.yml")["datasources"][0]
PROVIDER = load(PROVISIONING / "dashboards" / "river.yml")["providers"][0]
GRAFANA = compose()["services"]["grafana"]
BOARDS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS}
PANELS = [
    pytest.param(panel, id=f"{name}-{panel['id']}")
    for name, board in BOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
]


def test_dashboards_are_there() -> None:
    assert set(BOARDS) == {"river-service", "river-exit"}
    assert all(board["uid"] == name for name, board in BOARDS.items())


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_everything_names_the_data_source_by_its_fixed_uid(board: dict[str, Any]) -> None:
    sources = [node["datasource"] for node in walk(board) if "datasource" in node]
    assert sources
    assert {source["uid"] for source in sources} == {SOURCE["uid"]}
    assert {source["type"] for source in sources} == {SOURCE["type"]}
    # Left over from "export for sharing externally"; file provisioning does not resolve it.
    assert "__inputs" not in board
    assert "${DS_" not in json.dumps(board)


@pytest.mark.parametrize("panel", PANELS)
def test_queries_ask_for_series_that_exist(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        assert names_in(target["expr"]) <= known_series() | RECORDS


@pytest.mark.parametrize("panel", PANELS)
def test_queries_are_promql(panel: dict[str, Any]) -> None:
    pytest.importorskip("promql_parser", reason="needs the package promql-parser")
    for target in panel["targets"]:
        assert parsed_names(target["expr"]) == names_in(target["expr"])


@pytest.mark.parametrize("panel", PANELS)
def test_panels_have_a_title_a_unit_and_their_own_queries(panel: dict[str, Any]) -> None:
    assert panel["title"]
    if panel["type"] != "heatmap":
        assert panel["fieldConfig"]["defaults"]["unit"]
    references = [target["refId"] for target in panel["targets"]]
    assert references == sorted(set(references))


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_panels_do_not_overlap(board: dict[str, Any]) -> None:
    identifiers = [panel["id"] for panel in board["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    boxes = [panel["gridPos"] for panel in board["panels"]]
    assert all(box["x"] + box["w"] <= 24 for box in boxes)
    for a, b in combinations(boxes, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (a, b)


def test_dashboards_show_what_an_operator_asks_for() -> None:
    shown: set[str] = set()
    for board in BOARDS.values():
        for node in walk(board):
            if "expr" in node:
                shown |= names_in(node["expr"])
    assert {
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_bucket",
        "vllm:e2e_request_latency_seconds_bucket",
        "vllm:generation_tokens_total",
        "vllm:prompt_tokens_total",
        "vllm:kv_cache_usage_perc",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "river_exit_layer_bucket",
        "river_tokens_total",
        "river_backbone_layers_total",
        "river_skipped_layers_total",
        "river_drafted_tokens_total",
        "river_accepted_tokens_total",
        "river_threshold",
    } <= shown


def test_rates_are_taken_over_grafanas_interval() -> None:
    """A fixed window shows nothing where it is shorter than two scrapes."""
    scrape = load(DEPLOY / "prometheus" / "prometheus.yml")["global"]["scrape_interval"]
    assert SOURCE["jsonData"]["timeInterval"] == scrape
    for board in BOARDS.values():
        windows = re.findall(
            r"\[([^\]]+)\]", " ".join(n["expr"] for n in walk(board) if "expr" in n)
        )
        assert windows
        assert set(windows) <= {"$__rate_interval", "$__range"}


def test_provisioning_takes_addresses_from_the_environment() -> None:
    variables = {SOURCE["url"], PROVIDER["options"]["path"]}
    assert variables == {"${RIVER_PROMETHEUS_URL}", "${RIVER_DASHBOARDS}"}
    environment = GRAFANA["environment"]
    assert environment["RIVER_PROMETHEUS_URL"] == "http://prometheus:9090"
    mounts = {v.split(":")[1]: v.split(":")[0] for v in GRAFANA["volumes"]}
    dashboards = DEPLOY / mounts[environment["RIVER_DASHBOARDS"]]
    assert dashboards.resolve() == DASHBOARDS[0].parent
    home = Path(environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.parent == Path(environment["RIVER_DASHBOARDS"])
    assert home.stem in BOARDS
