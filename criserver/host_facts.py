"""What this machine offers to containers, looked up once at the daemon's start."""

from __future__ import annotations

import os
import re
from pathlib import Path

from criserver.container_spec import HostFacts
from runtimeshim.linux import capabilities
from runtimeshim.linux.cgroups import CgroupManager

# mount_setattr(2), which makes a whole tree of mounts read-only.
RECURSIVE_READ_ONLY_KERNEL = (5, 12)

SELINUX = Path("/sys/fs/selinux/enforce")


def host_facts(manager: CgroupManager, apparmor_profile: str = "") -> HostFacts:
    """Look the machine up; `apparmor_profile` is the default one, loaded, "" without AppArmor."""
    machine = os.uname()
    return HostFacts(
        machine=machine.machine,
        hostname=machine.nodename,
        capabilities=tuple(capabilities.to_names(capabilities.current().permitted)),
        cgroup_version=manager.version,
        swap=manager.swap,
        hugetlb="hugetlb" in manager.controllers,
        selinux=SELINUX.exists(),
        apparmor_profile=apparmor_profile,
        recursive_read_only=kernel_version(machine.release) >= RECURSIVE_READ_ONLY_KERNEL,
    )


def kernel_version(release: str) -> tuple[int, int]:
    """Return (major, minor) of a kernel release as uname(2) has it."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)
