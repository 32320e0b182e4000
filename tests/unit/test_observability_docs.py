"""docs/observability.md and the dashboard against the metrics that are exposed, both ways."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from prometheus_client import Metric

from criserver.config_observability import MetricsConfig, TracingConfig
from tests.unit import promql
from tests.unit.metrics import Observed

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "observability.md"
DASHBOARD = ROOT / "deploy" / "grafana" / "criserver.json"

# What Grafana puts in place of these, as far as a query's validity goes.
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*", "$job": ".*", "$operation": ".*"}


class Row(NamedTuple):
    """One metric as the document has it."""

    name: str
    type: str
    labels: set[str]
    example: str


def documented() -> Iterator[Row]:
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("| `"):
            name, kind, labels, _, example = (cell.strip() for cell in line.strip("|").split("|"))
            yield Row(name.strip("`"), kind, set(re.findall(r"\w+", labels)), example.strip("`"))


def own_labels(name: str, family: Metric) -> set[str]:
    """A family's labels without a bucket's bound."""
    return {label for sample in family.samples for label in sample.labels} - {"le"}


@pytest_asyncio.fixture
async def families() -> dict[str, Metric]:
    """All that is exposed, with a series of each."""
    observed = Observed()
    observed.everything()
    found = await observed.families()
    observed.close()
    assert [name for name, family in found.items() if not family.samples] == []
    return found


async def test_every_metric_is_documented_with_its_type_and_labels_and_no_other(families):
    exposed = {name: (each.type, own_labels(name, each)) for name, each in families.items()}
    assert {row.name: (row.type, row.labels) for row in documented()} == exposed


async def test_every_example_asks_for_its_metric_and_answers(families):
    rows = list(documented())
    assert [each for row in rows for each in promql.problems(row.example, families)] == []
    for row in rows:
        parts = {row.name, *(row.name + part for part in promql.PARTS)}
        assert parts & promql.metrics(row.example), row.name


def test_every_setting_is_documented():
    text = DOCUMENT.read_text()
    for table, settings in (("metrics", MetricsConfig), ("tracing", TracingConfig)):
        section = text.partition(f"[{table}]\n")[2].partition("```")[0].partition("\n[")[0]
        names = re.findall(r"^(\w+) = ", section, re.MULTILINE)
        assert names == [field.name for field in dataclasses.fields(settings)]
    assert "log_level = " in text
    assert "log_format = " in text


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text())


def panel_queries() -> list[str]:
    """The queries of all panels, with values for their variables."""
    found = []
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            found.append(query)
    return found


async def test_every_query_of_the_dashboard_answers(families):
    queries = panel_queries()
    assert [each for query in queries for each in promql.problems(query, families)] == []
    asked = set().union(*(promql.metrics(query) for query in queries))
    shown = {promql.family_of(name, families).name for name in asked}
    assert {each.name for each in families.values()} - shown == set()


async def test_every_variable_of_the_dashboard_is_a_label_of_its_metric(families):
    variables = {each["name"]: each for each in dashboard()["templating"]["list"]}
    assert {f"${name}" for name in variables} | {"$__rate_interval"} == {
        *VARIABLES,
        "$datasource",
    }
    for variable in variables.values():
        if variable["type"] == "query":
            query = variable["query"]["query"].replace("$job", ".*")
            selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()
            assert promql.problems(selector, families) == []
            assert label in promql.labels(selector.partition("{")[0], families)


def test_legends_name_labels_that_the_query_keeps():
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            kept = set(re.findall(r"\w+", "".join(re.findall(r"by \(([^)]*)\)", target["expr"]))))
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert named <= kept, (panel["title"], target["expr"])


def test_panels_do_not_overlap():
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("criserver_nothing", "no metric criserver_nothing"),
        ("rate(criserver_shims[5m])", "no counter"),
        ('criserver_containers{status="x"}', "no label status"),
        ("sum by (method) (criserver_containers)", "no label method"),
        ("criserver_rpc_duration_seconds", "no metric"),
        ("sum(", "sum("),
    ],
)
async def test_a_wrong_query_is_found(families, query, problem):
    assert any(problem in each for each in promql.problems(query, families))
