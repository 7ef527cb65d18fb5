"""Scrape configuration, recording rules and alerts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.files import DEPLOY, RULES, compose, load
from tests.deploy.metrics import known_series, names_in, parsed_names

CONFIG = load(DEPLOY / "prometheus" / "prometheus.yml")
ENTRIES = [rule for path in RULES for group in load(path)["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in ENTRIES if "alert" in rule]
RECORDS = {rule["record"] for rule in ENTRIES if "record" in rule}


def name(rule: dict[str, Any]) -> str:
    return str(rule.get("alert") or rule.get("record"))


@pytest.mark.parametrize("rule", ENTRIES, ids=name)
def test_rules_ask_for_series_that_exist(rule: dict[str, Any]) -> None:
    assert names_in(rule["expr"]) <= known_series() | RECORDS


@pytest.mark.parametrize("rule", ENTRIES, ids=name)
def test_rules_are_promql(rule: dict[str, Any]) -> None:
    pytest.importorskip("promql_parser", reason="needs the package promql-parser")
    assert parsed_names(rule["expr"]) == names_in(rule["expr"])


def test_an_unknown_series_is_noticed() -> None:
    # Names of earlier vLLM versions, and a counter without its suffix.
    for old in ("vllm:time_per_output_token_seconds_bucket", "vllm:num_preemptions"):
        assert names_in(f'sum by (le) (rate({old}{{x="y"}}[5m])) > 1 and on (le) up') == {old, "up"}
        assert old not in known_series()


@pytest.mark.parametrize("rule", ALERTS, ids=name)
def test_alerts_say_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"info", "warning", "critical"}
    assert set(rule["annotations"]) == {"summary", "description"}
    assert rule["annotations"]["description"].endswith(".")
    assert re.fullmatch(r"\d+m", rule["for"]), "a blip is no alert"


def test_rule_names_are_unique() -> None:
    names = [name(rule) for rule in ENTRIES]
    assert sorted(names) == sorted(set(names))


def test_every_alert_has_a_unit_test() -> None:
    text = (DEPLOY / "prometheus" / "tests" / "alerts.test.yml").read_text()
    assert not [rule["alert"] for rule in ALERTS if rule["alert"] not in text]


def test_rule_files_and_keys_are_found_from_the_configuration() -> None:
    """In the container as in a checkout, where paths are relative to the file's folder."""
    service = compose()["services"]["prometheus"]
    folder = Path("/etc/prometheus")
    mounts = {v.split(":")[1]: v.split(":")[0] for v in service["volumes"]}
    assert CONFIG["rule_files"] == ["rules/*.yml"]
    assert (DEPLOY / mounts[str(folder / "rules")]).resolve() == RULES[0].parent
    river = CONFIG["scrape_configs"][0]
    key = folder / river["authorization"]["credentials_file"]
    assert str(key) in {secret["target"] for secret in service["secrets"]}
    for pattern in river["file_sd_configs"][0]["files"]:
        assert str((folder / pattern).parent) in mounts


def test_river_is_scraped_under_the_name_and_port_that_compose_gives_it() -> None:
    river = CONFIG["scrape_configs"][0]
    discovery = river["dns_sd_configs"][0]
    for service in ("river-cpu", "river-gpu"):
        entry = compose()["services"][service]
        network = entry["networks"]["serving"]
        assert network["aliases"] == discovery["names"]
        assert entry["expose"] == [str(discovery["port"])]


def test_alerts_select_servers_by_the_label_that_every_scrape_sets() -> None:
    (relabel,) = CONFIG["scrape_configs"][0]["relabel_configs"]
    assert relabel == {"target_label": "app", "replacement": "river"}
    monitor = load(DEPLOY / "kubernetes" / "servicemonitor.yaml")
    assert monitor["spec"]["endpoints"][0]["relabelings"] == [
        {"targetLabel": "app", "replacement": "river"}
    ]
    for rule in ENTRIES:
        # River's own series need no telling apart.
        others = re.findall(
            r"\b(?:vllm:\w+|up|http_requests_total)\b(?!\{app=\"river\")", rule["expr"]
        )
        assert not others, rule["expr"]
