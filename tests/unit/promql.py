"""What is wrong with a PromQL query, by the metrics that are there to be asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import promql_parser as promql
from prometheus_client import Metric

# Labels that Prometheus adds to all that it scrapes.
TARGET_LABELS = {"job", "instance"}
# What these are asked of counts up.
OF_COUNTERS = {"rate", "irate", "increase"}
PARTS = {"_bucket", "_sum", "_count"}


def problems(query: str, families: Mapping[str, Metric]) -> list[str]:
    """Return what is wrong with a query, nothing if it answers.

    `families`, by exposed name, have a series for each set of labels.
    """
    try:
        parsed = promql.parse(query)
    except ValueError as err:
        return [f"{query}: {err}"]
    return [f"{query}: {problem}" for problem in _problems(parsed, families)]


def _problems(node: Any, families: Mapping[str, Metric]) -> Iterator[str]:
    match node:
        case promql.VectorSelector():
            yield from _of_selector(node, families)
        case promql.AggregateExpr() if node.modifier is not None:
            known = set().union(*(labels(each.name, families) for each in selectors(node)))
            yield from (f"no label {name}" for name in set(node.modifier.labels) - known)
        case promql.Call() if node.func.name in OF_COUNTERS:
            for selector in selectors(node):
                if not _counts_up(selector.name, families):
                    yield f"{node.func.name} of {selector.name}, which is no counter"
        case _:
            pass
    for child in children(node):
        yield from _problems(child, families)


def _of_selector(selector: Any, families: Mapping[str, Metric]) -> Iterator[str]:
    family = family_of(selector.name, families)
    if family is None:
        yield f"no metric {selector.name}"
        return
    known = labels(selector.name, families)
    for matcher in selector.matchers.matchers:
        if matcher.name not in known:
            yield f"{selector.name} has no label {matcher.name}"


def family_of(name: str, families: Mapping[str, Metric]) -> Metric | None:
    """Return the family of an exposed name; a histogram has three names, and not its own."""
    for part in PARTS:
        family = families.get(name.removesuffix(part)) if name.endswith(part) else None
        if family is not None and family.type == "histogram":
            return family
    family = families.get(name)
    return None if family is None or family.type == "histogram" else family


def labels(name: str, families: Mapping[str, Metric]) -> set[str]:
    """Return the labels of an exposed name, those of its target too."""
    family = family_of(name, families)
    samples = [] if family is None else family.samples
    found = {label for sample in samples if sample.name == name for label in sample.labels}
    return found | TARGET_LABELS


def _counts_up(name: str, families: Mapping[str, Metric]) -> bool:
    family = family_of(name, families)
    return family is not None and family.type in ("counter", "histogram")


def children(node: Any) -> list[Any]:
    """Return the expressions that an expression is made of."""
    found = [getattr(node, part, None) for part in ("expr", "lhs", "rhs", "vector_selector")]
    return [each for each in (*found, *(getattr(node, "args", None) or ())) if each is not None]


def selectors(node: Any) -> list[Any]:
    """Return what an expression asks for."""
    if isinstance(node, promql.VectorSelector):
        return [node]
    return [found for child in children(node) for found in selectors(child)]


def metrics(query: str) -> set[str]:
    """Return the names that a query asks for."""
    return {selector.name for selector in selectors(promql.parse(query))}
