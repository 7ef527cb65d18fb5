"""Scrape configuration, recording rules, alerts and dashboards."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.deploy.files import DASHBOARDS, DEPLOY, ROOT, RULES, compose, load, walk
from tests.deploy.metrics import known_series, names_in

CONFIG = load(DEPLOY / "prometheus" / "prometheus.yml")
ENTRIES = [rule for path in RULES for group in load(path)["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in ENTRIES if "alert" in rule]
RECORDS = {rule["record"] for rule in ENTRIES if "record" in rule}


def name(rule: dict[str, Any]) -> str:
    return str(rule.get("alert") or rule.get("record"))


@pytest.mark.parametrize("rule", ENTRIES, ids=name)
def test_rules_ask_for_series_that_exist(rule: dict[str, Any]) -> None:
    assert names_in(rule["expr"]) <= known_series() | RECORDS


def test_an_unknown_series_is_noticed() -> None:
    # Names of earlier vLLM versions, and a counter without its suffix.
    for old in ("vllm:time_per_output_token_seconds_bucket", "vllm:num_preemptions"):
        assert names_in(f'sum by (le) (rate({old}{{x="y"}}[5m])) > 1 and on (le) up') == {old, "up"}
        assert old not in known_series()


def test_every_alert_has_a_unit_test() -> None:
    text = (DEPLOY / "prometheus" / "tests" / "alerts.test.yml").read_text()
    assert not [rule["alert"] for rule in ALERTS if rule["alert"] not in text]


RUNBOOK = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8").partition("\n## Runbook\n")[2]
RUNBOOK = RUNBOOK.partition("\n## ")[0]


def test_every_alert_has_its_place_in_the_runbook_and_nothing_else_has() -> None:
    headings = re.findall(r"^##+ (.+)$", RUNBOOK, re.MULTILINE)
    assert headings == [rule["alert"] for rule in ALERTS]
    for rule in ALERTS:
        # An anchor is its heading in lower case (docs/conf.py: myst_heading_anchors).
        assert rule["annotations"]["runbook"] == f"docs/operate.md#{rule['alert'].lower()}"


def test_the_runbook_asks_for_series_that_exist() -> None:
    # Pygments' lexer of PromQL takes no colon in a name.
    blocks = re.findall(r"^ *```text\n(.*?)```", RUNBOOK, re.MULTILINE | re.DOTALL)
    queries = [line.strip() for block in blocks for line in block.strip().splitlines()]
    assert queries
    for query in queries:
        assert names_in(query) <= known_series() | RECORDS, query


def test_river_is_scraped_under_the_name_and_port_that_compose_gives_it() -> None:
    discovery = CONFIG["scrape_configs"][0]["dns_sd_configs"][0]
    for service in ("river-cpu", "river-gpu"):
        entry = compose()["services"][service]
        assert entry["networks"]["serving"]["aliases"] == discovery["names"]
        assert entry["expose"] == [str(discovery["port"])]


def test_alerts_select_servers_by_the_label_that_every_scrape_sets() -> None:
    (relabel,) = CONFIG["scrape_configs"][0]["relabel_configs"]
    assert relabel == {"target_label": "app", "replacement": "river"}
    for rule in ENTRIES:
        # River's own series need no telling apart.
        others = re.findall(
            r"\b(?:vllm:\w+|up|http_requests_total)\b(?!\{app=\"river\")", rule["expr"]
        )
        assert not others, rule["expr"]


BOARDS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS}


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_dashboards_ask_the_provisioned_source_for_series_that_exist(board: dict[str, Any]) -> None:
    provisioned = load(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml")
    (source,) = provisioned["datasources"]
    nodes = list(walk(board))
    assert {node["datasource"]["uid"] for node in nodes if "datasource" in node} == {source["uid"]}
    queries = [node["expr"] for node in nodes if "expr" in node]
    assert queries
    for query in queries:
        assert names_in(query) <= known_series() | RECORDS
    # A fixed window shows nothing where it is shorter than two scrapes.
    assert set(re.findall(r"\[([^\]]+)\]", " ".join(queries))) <= {"$__rate_interval", "$__range"}
    assert source["jsonData"]["timeInterval"] == CONFIG["global"]["scrape_interval"]
