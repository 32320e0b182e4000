"""The host: security modules, time, disks, limits, the daemon."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from criserver import apparmor
from criserver.check.finding import Finding, fail, good, warn
from criserver.check.places import nearest
from criserver.config import Config
from runtimeshim.linux import clock

SELINUX = Path("/sys/fs/selinux/enforce")
SELINUX_POLICY = Path("/etc/selinux/targeted/contexts/lxc_contexts")
SYSCTLS = Path("/proc/sys")

# Certificates of registries are not valid before they were made; a clock that was reset says 1970.
SANE_YEAR = 2024

# The kubelet's defaults for hard eviction: imagefs.available, nodefs.inodesFree.
FREE_SHARE = 0.15
FREE_INODES_SHARE = 0.05
FREE_BYTES = 1 << 30
RUN_DIR_BYTES = 16 << 20

# sysctl -> (least, why)
LIMITS = {
    "fs/inotify/max_user_instances": (
        512,
        "the kubelet and pods end with 'too many open files'",
    ),
    "fs/inotify/max_user_watches": (65536, "pods that watch files fail with 'no space left'"),
    "fs/file-max": (1 << 17, "the whole node runs out of open files"),
    "kernel/pid_max": (1 << 15, "the whole node runs out of processes"),
}
OPEN_FILES = 1 << 16  # of the daemon: some for each container and stream


def check(config: Config) -> Iterator[Finding]:
    """Look at the host."""
    yield _apparmor()
    yield _selinux()
    yield _time()
    yield from _disk("disk", config.root, FREE_BYTES)
    yield from _disk("run directory", config.run_dir, RUN_DIR_BYTES)
    yield _is_tmpfs(config.run_dir)
    yield from _limits()
    yield _daemon(config)


def _apparmor() -> Finding:
    if not apparmor.is_enabled():
        return good("AppArmor", "the kernel enforces none: pods cannot ask for profiles")
    if shutil.which("apparmor_parser") is None:
        return fail(
            "AppArmor",
            "enabled, but apparmor_parser is missing: the default profile cannot be loaded",
            "install it (Debian: apparmor)",
        )
    return good("AppArmor", "enabled")


def _selinux() -> Finding:
    try:
        enforcing = SELINUX.read_text().strip() == "1"
    except FileNotFoundError:
        return good("SELinux", "the kernel enforces none")
    if not SELINUX_POLICY.exists():
        return warn(
            "SELinux",
            "enabled without a policy for containers",
            "install container-selinux",
        )
    return good("SELinux", "enforcing" if enforcing else "permissive")


def _time() -> Finding:
    year = time.gmtime().tm_year
    if year < SANE_YEAR:
        return fail("time", f"the clock says {year}", "set it: TLS to registries fails otherwise")
    if not clock.is_synchronised():
        return warn(
            "time",
            "the clock is not synchronised",
            "run chrony or systemd-timesyncd: certificates, tokens and logs depend on it",
        )
    return good("time", "synchronised")


def _disk(name: str, directory: Path, least: int) -> Iterator[Finding]:
    place = nearest(directory)
    status = os.statvfs(place)
    free, total = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    found = f"{place}: {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    advice = "`criserver image gc --unused` removes images that nothing uses; or a larger disk"
    if status.f_flag & os.ST_RDONLY:
        yield fail(name, f"{place} is read-only", "see the kernel's log; repair it, remount it")
    elif free < least:
        yield fail(name, found, advice)
    elif free < FREE_SHARE * total:
        yield warn(name, f"{found}: the kubelet evicts pods below {FREE_SHARE:.0%}", advice)
    else:
        yield good(name, found)
    if status.f_files and status.f_favail < FREE_INODES_SHARE * status.f_files:
        yield warn(
            f"{name}'s inodes", f"{place}: {status.f_favail} of {status.f_files} free", advice
        )


def _is_tmpfs(directory: Path) -> Finding:
    place = nearest(directory)
    kind = _filesystem(place)
    if kind not in ("tmpfs", "ramfs"):
        return warn(
            "run directory's kind",
            f"{place} is on {kind}, not on a tmpfs",
            "set run_dir below /run: what is in it is void after a reboot",
        )
    return good("run directory's kind", kind)


def _filesystem(path: Path) -> str:
    """Return the type of the file system that a path is on (man 5 proc, mountinfo)."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.split()[2] == wanted:
                return line.partition(" - ")[2].split()[0]
    return "an unknown file system"


def _limits() -> Iterator[Finding]:
    low = []
    for name, (least, why) in LIMITS.items():
        key = name.replace("/", ".")
        value = int((SYSCTLS / name).read_text())
        if value < least:
            low.append(key)
            yield warn(
                key, f"{value}: {why}", f"sysctl -w {key}={least} or more, and in /etc/sysctl.d"
            )
    if not low:
        yield good("limits", "inotify, open files and processes are enough")


def _daemon(config: Config) -> Finding:
    """Look at the daemon's own limit of open files, or else at ours, which it would inherit."""
    try:
        pid = int((config.root / "criserver.lock").read_text())
        limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
        whose = f"the daemon (process {pid})"
    except (FileNotFoundError, PermissionError, ValueError, ProcessLookupError):
        limit, whose = resource.getrlimit(resource.RLIMIT_NOFILE)[1], "no daemon runs; it"
    if resource.RLIM_INFINITY != limit < OPEN_FILES:
        return warn(
            "open files",
            f"{whose} may have {limit}",
            f"LimitNOFILE={OPEN_FILES} or more in the unit, as in deploy/criserver.service",
        )
    return good("open files", f"{whose} may have {limit}")
