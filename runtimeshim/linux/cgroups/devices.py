"""OCI device cgroup rules (runtime-spec, config-linux.md, "Allowed Device List")."""

from __future__ import annotations

import errno

from runtimeshim.linux.cgroups.files import CgroupError, write_each
from runtimeshim.linux.cgroups.resources import flag, integer, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ANY = -1
ACCESS = "rwm"


class Rule:
    """One rule: allow or deny `access` ("rwm") to a kind ("a", "b", "c") of device.

    `major` and `minor` are numbers or ANY. Kind "a" is every device with every access.
    """

    __slots__ = ("access", "allow", "kind", "major", "minor")

    def __init__(self, allow: bool, kind: str, major: int, minor: int, access: str) -> None:
        self.allow = allow
        self.kind = kind
        self.major = major
        self.minor = minor
        self.access = access

    def line(self) -> str:
        """Return the rule as devices.allow and devices.deny take it ("c 1:3 rwm")."""
        if self.kind == "a":
            return "a"
        return f"{self.kind} {_part(self.major)}:{_part(self.minor)} {self.access}"


def _part(number: int) -> str:
    return "*" if number == ANY else str(number)


# What every container may use (config-linux.md, "Default Devices", with runc's additions: mknod of
# any node, which grants no access, the pts devices and /dev/net/tun).
DEFAULT_RULES = (
    Rule(True, "c", ANY, ANY, "m"),
    Rule(True, "b", ANY, ANY, "m"),
    Rule(True, "c", 1, 3, ACCESS),  # /dev/null
    Rule(True, "c", 1, 5, ACCESS),  # /dev/zero
    Rule(True, "c", 1, 7, ACCESS),  # /dev/full
    Rule(True, "c", 1, 8, ACCESS),  # /dev/random
    Rule(True, "c", 1, 9, ACCESS),  # /dev/urandom
    Rule(True, "c", 5, 0, ACCESS),  # /dev/tty
    Rule(True, "c", 5, 2, ACCESS),  # /dev/ptmx
    Rule(True, "c", 136, ANY, ACCESS),  # /dev/pts/*
    Rule(True, "c", 10, 200, ACCESS),  # /dev/net/tun
)


def parse(rules: Sequence[Mapping[str, object]]) -> list[Rule]:
    """Return the rules of linux.resources.devices, checked, in their order."""
    return [_parse_one(rule) for rule in rules]


def _parse_one(rule: Mapping[str, object]) -> Rule:
    kind = text(rule, "type") or "a"
    access = text(rule, "access") or ACCESS
    if kind == "u":  # an unbuffered character device is a character device
        kind = "c"
    if kind not in ("a", "b", "c"):
        raise CgroupError(errno.EINVAL, f"linux.resources.devices: unknown type {kind!r}")
    if not set(access) <= set(ACCESS):
        raise CgroupError(errno.EINVAL, f"linux.resources.devices: unknown access {access!r}")
    return Rule(flag(rule, "allow"), kind, _number(rule, "major"), _number(rule, "minor"), access)


def _number(rule: Mapping[str, object], name: str) -> int:
    value = integer(rule, name)
    if value is None or value == ANY:
        return ANY
    if not 0 <= value < 1 << 32:
        raise CgroupError(errno.EINVAL, f"linux.resources.devices: {name} {value} is out of range")
    return value


def allowlist(rules: Sequence[Mapping[str, object]]) -> list[Rule]:
    """Return the full list for a container: nothing, then `rules`, then the default devices.

    What comes before the last rule for all devices has no effect and is left out.
    """
    effective = [Rule(False, "a", ANY, ANY, ACCESS), *parse(rules)]
    last = max(index for index, rule in enumerate(effective) if rule.kind == "a")
    return [*effective[last:], *DEFAULT_RULES]


def apply_v1(directory: str, rules: list[Rule]) -> None:
    """Write a list to the v1 devices controller, in its order.

    Rules in a row that go to the same file share one open of it.
    """
    batch: list[str] = []
    allow = rules[0].allow
    for rule in rules:
        if rule.allow != allow:
            write_each(_file(directory, allow), batch)
            batch, allow = [], rule.allow
        batch.append(rule.line())
    write_each(_file(directory, allow), batch)


def _file(directory: str, allow: bool) -> str:
    return f"{directory}/devices.{'allow' if allow else 'deny'}"
