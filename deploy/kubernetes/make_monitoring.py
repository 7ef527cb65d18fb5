"""Print alerts and dashboards as objects for Kubernetes, to be piped into ``kubectl apply -f -``.

A PrometheusRule (Prometheus operator) for each file of ``deploy/prometheus/rules``, and a ConfigMap
with the dashboards of ``deploy/grafana/dashboards`` under the label that Grafana's sidecar looks
for. The files go in as they are, so that there is one copy of each.
"""

import textwrap
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent.parent
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))

RULE = """\
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: river-{name}
  labels: {{app.kubernetes.io/name: river}}
spec:
"""
CONFIG_MAP = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: river-dashboards
  labels: {app.kubernetes.io/name: river, grafana_dashboard: "1"}
data:
"""


def indented(path: Path, spaces: int) -> str:
    return textwrap.indent(path.read_text(encoding="utf-8"), " " * spaces)


def objects() -> list[str]:
    rules = [RULE.format(name=path.stem) + indented(path, 2) for path in RULES]
    boards = [f"  {path.name}: |\n{indented(path, 4)}" for path in DASHBOARDS]
    return [*rules, CONFIG_MAP + "".join(boards)]


if __name__ == "__main__":
    print("---\n".join(objects()), end="")
