"""Typed access to OCI linux.resources: a wrong type names its field before anything is written."""

from __future__ import annotations

import errno
import os

from runtimeshim.linux.cgroups.files import CgroupError, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Section = Mapping[str, object]


def _wrong(field: str, value: object, wanted: str) -> CgroupError:
    return CgroupError(errno.EINVAL, f"linux.resources.{field} is {value!r}, not {wanted}")


def section(resources: Section, name: str) -> Section:
    """Return an object of linux.resources; empty when it is absent or null."""
    value = resources.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(name, value, "an object")
    return value


def entries(resources: Section, name: str) -> Sequence[Section]:
    """Return a list of objects of linux.resources; empty when it is absent or null."""
    value = resources.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _wrong(name, value, "a list of objects")
    return value


def integer(values: Section, name: str) -> int | None:
    """Return an integer field, None when it is absent or null."""
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(name, value, "an integer")
    return value


def positive(values: Section, name: str) -> int | None:
    """Return an integer field in which 0 means unset, as linux.resources uses it for limits."""
    return integer(values, name) or None


def text(values: Section, name: str) -> str:
    """Return a string field, "" when it is absent or null."""
    value = values.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong(name, value, "a string")
    return value


def flag(values: Section, name: str) -> bool:
    """Return a boolean field, False when it is absent or null."""
    value = values.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise _wrong(name, value, "a boolean")
    return value


def limit(value: int) -> str:
    """Return a limit as cgroup v2 writes it: -1 is "max"."""
    return "max" if value < 0 else str(value)


class Limit:
    """What one controller does with a field of linux.resources."""

    __slots__ = ("apply", "controller", "field", "keys")

    def __init__(
        self,
        field: str,
        controller: str,
        keys: tuple[str, ...],
        apply: Callable[[str, Section], None],
    ) -> None:
        self.field = field
        self.controller = controller
        self.keys = keys  # the members of the field that concern it; none: the field is a list
        self.apply = apply

    def wanted(self, resources: Section) -> bool:
        """Tell whether the resources set anything of this controller's."""
        if not self.keys:
            return resources.get(self.field) is not None
        values = section(resources, self.field)
        return any(values.get(key) not in (None, "") for key in self.keys)


def refuse(resources: Section, fields: tuple[str, ...], reason: str) -> None:
    """Raise for the first of `fields` that the resources set: a limit is never dropped silently."""
    for field in fields:
        if resources.get(field):
            raise CgroupError(errno.EOPNOTSUPP, f"linux.resources.{field} {reason}")


def pids_limit(resources: Section) -> str:
    """Return the value of pids.max; negative is unlimited.

    0 becomes 1, which forbids every fork alike: systemd knows no 0, and the two cgroup drivers
    are to agree.
    """
    value = integer(section(resources, "pids"), "limit")
    return limit(-1 if value is None else max(value, 1) if value >= 0 else value)


def write_hugetlb(directory: str, resources: Section, suffix: str) -> None:
    """Write every huge page limit, and its reservation limit where the kernel has it (5.7)."""
    for entry in entries(resources, "hugepageLimits"):
        size = text(entry, "pageSize")
        prefix = f"{directory}/hugetlb.{size}"
        if "/" in size or (os.path.exists(directory) and not os.path.exists(f"{prefix}.{suffix}")):
            raise _wrong("hugepageLimits.pageSize", size, "a size of huge pages that there is here")
        value = str(integer(entry, "limit") or 0)
        write(f"{prefix}.{suffix}", value)
        reservation = f"{prefix}.rsvd.{suffix}"
        if os.path.exists(reservation):
            write(reservation, value)
