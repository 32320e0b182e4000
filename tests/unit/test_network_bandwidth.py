"""Bandwidth annotations are Kubernetes quantities within reason."""

from __future__ import annotations

import pytest

from api.errors import InvalidArgumentError
from podsandbox.network.bandwidth import EGRESS, INGRESS, bandwidth_of


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1000", 1000),
        ("1k", 1000),
        ("10M", 10**7),
        ("1.5G", 1500000000),
        ("1Ki", 1024),
        ("2Mi", 2 << 20),
        ("1P", 10**15),
        ("1e6", 10**6),
        ("12E3", 12000),
        ("1500500m", 1501),
        (".5M", 500000),
    ],
)
def test_quantities(text: str, rate: int) -> None:
    assert bandwidth_of({INGRESS: text}) == {"ingressRate": rate, "ingressBurst": 2**32 - 1}


@pytest.mark.parametrize(
    "text",
    ["", "M", "10 M", "10MB", "-1M", "999", "1.1P", "1E", "1e99999999", "9" * 99, "0x10", "1Mii"],
)
def test_what_is_no_quantity_or_out_of_reason_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="egress-bandwidth"):
        bandwidth_of({EGRESS: text})


def test_both_directions_or_none() -> None:
    assert bandwidth_of({"other": "1M"}) == {}
    assert set(bandwidth_of({INGRESS: "1M", EGRESS: "2M"})) == {
        "ingressRate",
        "ingressBurst",
        "egressRate",
        "egressBurst",
    }
