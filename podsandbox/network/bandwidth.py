"""A pod's bandwidth annotations, as the kubelet and containerd read them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal

from api.errors import InvalidArgumentError

INGRESS = "kubernetes.io/ingress-bandwidth"
EGRESS = "kubernetes.io/egress-bandwidth"

# Kubernetes' quantity: decimal number and suffix (k8s.io/apimachinery, api/resource).
_QUANTITY = re.compile(r"\+?(\d+(?:\.\d*)?|\.\d+)(m|k|[MGTPE]|[KMGTPE]i|[eE][+-]?\d+)?", re.ASCII)
_SUFFIXES: dict[str | None, Decimal] = {
    None: Decimal(1),
    "m": Decimal("0.001"),
    "k": Decimal(10**3),
    **{letter: Decimal(10 ** (3 * n)) for n, letter in enumerate("MGTPE", 2)},
    **{f"{letter}i": Decimal(1 << (10 * n)) for n, letter in enumerate("KMGTPE", 1)},
}

# Bits per second that Kubernetes takes for reasonable (pkg/util/bandwidth).
_MIN_RATE, _MAX_RATE = 10**3, 10**15

# The bucket's size in bits; as containerd's, no tighter than the rate itself.
_BURST = (1 << 32) - 1

# Digits beyond this are no bandwidth, and exponents beyond it no number to compute.
_MAX_LENGTH = 32


def bandwidth_of(annotations: Mapping[str, str]) -> dict[str, int]:
    """Return the CNI capability `bandwidth` (bits/s and bits), empty when none is asked for."""
    values = {}
    for annotation, direction in ((INGRESS, "ingress"), (EGRESS, "egress")):
        if annotation in annotations:
            values[f"{direction}Rate"] = _rate(annotation, annotations[annotation])
            values[f"{direction}Burst"] = _BURST
    return values


def _rate(annotation: str, text: str) -> int:
    match = _QUANTITY.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    if match is None:
        raise InvalidArgumentError(f"annotation {annotation}: {text[:80]!r} is no quantity")
    number, suffix = match.groups()
    if suffix is not None and suffix not in _SUFFIXES:
        exponent = int(suffix[1:])
        if abs(exponent) > len(str(_MAX_RATE)) + _MAX_LENGTH:
            raise InvalidArgumentError(f"annotation {annotation}: {text!r} is out of range")
        rate = Decimal(number).scaleb(exponent)
    else:
        rate = Decimal(number) * _SUFFIXES[suffix]
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise InvalidArgumentError(
            f"annotation {annotation}: {text!r} is not between 1k and 1P bits per second"
        )
    return math.ceil(rate)  # as a quantity's value is
