"""New limits for a cgroup in use: all of them, or those that it had."""

from __future__ import annotations

import os

from runtimeshim.linux.cgroups.base import CgroupManager
from runtimeshim.linux.cgroups.files import CgroupError, read
from runtimeshim.linux.cgroups.resources import entries, section, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtimeshim.linux.cgroups.resources import Section

# v1 writes "no limit" as the largest number of pages.
_MAX_LIMIT = 1 << 62
_UNLIMITED = -1

# field of linux.resources -> member -> the v1 controller and file
_V1_FILES = {
    "cpu": {
        "shares": ("cpu", "cpu.shares"),
        "quota": ("cpu", "cpu.cfs_quota_us"),
        "period": ("cpu", "cpu.cfs_period_us"),
        "cpus": ("cpuset", "cpuset.cpus"),
        "mems": ("cpuset", "cpuset.mems"),
    },
    "memory": {
        "limit": ("memory", "memory.limit_in_bytes"),
        "swap": ("memory", "memory.memsw.limit_in_bytes"),
        "reservation": ("memory", "memory.soft_limit_in_bytes"),
    },
}
# field of linux.resources -> member -> the v2 file
_V2_FILES = {
    "cpu": {
        "shares": "cpu.weight",
        "quota": "cpu.max",
        "period": "cpu.max",
        "cpus": "cpuset.cpus",
        "mems": "cpuset.mems",
    },
    "memory": {"limit": "memory.max", "swap": "memory.swap.max", "reservation": "memory.low"},
}


def update(manager: CgroupManager, path: str, resources: Mapping[str, object]) -> dict[str, object]:
    """Write OCI linux.resources without devices; a failure leaves the limits as they were.

    Returns those before, as linux.resources. Raises CgroupError with what failed first; a limit
    that could not be restored is in its note.
    """
    before = current(manager, path, resources)
    try:
        manager.apply(path, resources)
    except CgroupError as err:
        try:
            manager.apply(path, before)
        except CgroupError as second:
            err.add_note(f"the limits before it could not be restored: {second}")
        raise
    return before


def current(
    manager: CgroupManager, path: str, resources: Mapping[str, object]
) -> dict[str, object]:
    """Return the present values of what `resources` would change, for `apply` to write again."""
    directories = {
        controller: directory
        for names, directory in manager.directories(path)
        for controller in names.split(",")
    }
    if manager.version == 2:
        return {"unified": _current_v2(directories[""], resources)}
    return _current_v1(directories, resources)


def _current_v1(directories: Mapping[str, str], resources: Section) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, members in _V1_FILES.items():
        values: dict[str, object] = {}
        for member in section(resources, name).keys() & members:
            controller, file = members[member]
            directory = directories.get(controller)
            if directory is not None and os.path.exists(f"{directory}/{file}"):
                values[member] = _value(read(f"{directory}/{file}"))
        found[name] = values
    found["hugepageLimits"] = [
        {"pageSize": size, "limit": int(read(file))}
        for size in _page_sizes(resources)
        if os.path.exists(file := f"{directories.get('hugetlb', '')}/hugetlb.{size}.limit_in_bytes")
    ]
    return {name: values for name, values in found.items() if values}


def _value(content: str) -> int | str:
    """Return a v1 file's value as linux.resources has it: a number, or a list of CPUs."""
    try:
        number = int(content)
    except ValueError:
        return content
    return _UNLIMITED if number > _MAX_LIMIT else number


def _current_v2(directory: str, resources: Section) -> dict[str, str]:
    names = [
        members[member]
        for name, members in _V2_FILES.items()
        for member in section(resources, name)
        if member in members
    ]
    names += [f"hugetlb.{size}.max" for size in _page_sizes(resources)]
    names += section(resources, "unified")
    return {
        name: read(f"{directory}/{name}")
        for name in dict.fromkeys(names)
        if "/" not in name and os.path.exists(f"{directory}/{name}")
    }


def _page_sizes(resources: Section) -> list[str]:
    return [text(entry, "pageSize") for entry in entries(resources, "hugepageLimits")]
