"""The kernel: version, namespaces, seccomp, overlayfs, cgroups, user namespaces."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from criserver.check.finding import Finding, fail, good, warn
from criserver.check.places import nearest
from criserver.config import Config
from criserver.host_facts import kernel_version
from runtimeshim.linux import capabilities, cgroups, mounts, overlay, seccomp
from runtimeshim.linux.cgroups import CgroupError, CgroupManager

# pidfd_open(2), clone3(2) and the mount API by file descriptors are all there since.
OLDEST_KERNEL = (5, 4)
# mount_setattr(2), by which mounts become read-only as a whole, and are mapped.
FULL_KERNEL = (5, 12)

NAMESPACES = ("mnt", "pid", "net", "ipc", "uts")
OPTIONAL_NAMESPACES = ("user", "cgroup")

# What pods are limited by.
CONTROLLERS = ("cpu", "cpuset", "memory", "pids")

NEEDED_CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_CHROOT", "CAP_MKNOD", "CAP_KILL")

SYSTEMD = Path("/run/systemd/system")
USER_NAMESPACES = Path("/proc/sys/user/max_user_namespaces")


def check(config: Config) -> Iterator[Finding]:
    """Look at the kernel."""
    yield _version()
    yield _rights()
    yield from _namespaces()
    yield _seccomp()
    yield _overlay(config.root)
    yield from _cgroups(config)
    yield _user_namespaces()


def _version() -> Finding:
    release = os.uname().release
    version = kernel_version(release)
    if version < OLDEST_KERNEL:
        return fail("kernel", release, "boot Linux {}.{} or newer".format(*OLDEST_KERNEL))
    if version < FULL_KERNEL:
        return warn(
            "kernel",
            f"{release}: no recursive read-only mounts, no volumes in user namespaces",
            "boot Linux {}.{} or newer for these".format(*FULL_KERNEL),
        )
    return good("kernel", release)


def _rights() -> Finding:
    held = set(capabilities.to_names(capabilities.current().permitted))
    missing = [name for name in NEEDED_CAPABILITIES if name not in held]
    if os.geteuid() != 0 or missing:
        found = f"uid {os.geteuid()}, without {', '.join(missing) or 'nothing'}"
        return fail("privileges", found, "run as root with all capabilities: the daemon has to")
    return good("privileges", "root, with what the daemon needs")


def _namespaces() -> Iterator[Finding]:
    missing = [name for name in NAMESPACES if not os.path.exists(f"/proc/self/ns/{name}")]
    if missing:
        options = ", ".join(f"CONFIG_{name.upper()}_NS" for name in missing)
        yield fail("namespaces", f"missing: {', '.join(missing)}", f"a kernel with {options}")
    else:
        yield good("namespaces", ", ".join(NAMESPACES))
    for name in OPTIONAL_NAMESPACES:
        if not os.path.exists(f"/proc/self/ns/{name}"):
            yield warn(
                f"{name} namespace", "missing", f"a kernel with CONFIG_{name.upper()}_NS has them"
            )


def _seccomp() -> Finding:
    if not os.path.exists("/proc/sys/kernel/seccomp/actions_avail"):
        return fail(
            "seccomp",
            "the kernel has none",
            "a kernel with CONFIG_SECCOMP_FILTER: the default profile of pods is one",
        )
    try:
        seccomp.load_library()
    except (OSError, seccomp.SeccompError) as err:
        return fail("seccomp", str(err), "install libseccomp (Debian: libseccomp2)")
    return good("seccomp", "filters, and libseccomp")


def _overlay(root: Path) -> Finding:
    """Mount one where containers will have theirs: the disk's file system has its say."""
    place = nearest(root)
    try:
        scratch = tempfile.mkdtemp(prefix=".criserver-check-", dir=place)
    except OSError as err:
        return fail("overlayfs", f"{place}: {err.strerror}", "make it writable, or set `root`")
    try:
        paths = {name: os.path.join(scratch, name) for name in ("lower", "upper", "work", "merged")}
        for path in paths.values():
            os.mkdir(path)
        writable = overlay.Writable(paths["upper"], paths["work"])
        overlay.mount([paths["lower"]], paths["merged"], writable)
        mounts.umount(paths["merged"])
    except OSError as err:
        return fail("overlayfs", f"{place}: {err}", _overlay_advice(err))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return good("overlayfs", f"can be mounted on {place}")


def _overlay_advice(err: OSError) -> str:
    if err.errno == errno.ENODEV:
        return "load the module (modprobe overlay), or a kernel with CONFIG_OVERLAY_FS"
    if err.errno == errno.EPERM:
        return "run this as root, outside of a container"
    return "`root` has to be on a file system that overlayfs takes: ext4, or xfs with ftype=1"


def _cgroups(config: Config) -> Iterator[Finding]:
    try:
        manager = cgroups.manager()
    except CgroupError as err:
        yield fail("cgroups", str(err), "mount cgroup2 at /sys/fs/cgroup")
        return
    version = "v2" if manager.version == 2 else "v1"
    if manager.version == 1:
        yield warn(
            "cgroups",
            "v1: in maintenance in Kubernetes since 1.31, and refused by the kubelet's default "
            "since 1.35",
            "boot with systemd.unified_cgroup_hierarchy=1 if nothing on this node needs v1",
        )
    else:
        yield good("cgroups", version)
    missing = [name for name in CONTROLLERS if name not in manager.controllers]
    if missing:
        yield fail(
            "cgroup controllers",
            f"missing: {', '.join(missing)}",
            "boot without cgroup_disable=, with cgroup_enable=memory where that is off by default; "
            "on v2 they have to be in the root's cgroup.controllers",
        )
    else:
        yield good("cgroup controllers", ", ".join(sorted(manager.controllers)))
    yield _cgroup_driver(config, manager)
    yield _delegation(manager)
    if not manager.swap:
        yield warn(
            "swap accounting",
            "off: pods' memory limits do not bound their swap",
            "boot with swapaccount=1, or have no swap",
        )


def _cgroup_driver(config: Config, manager: CgroupManager) -> Finding:
    driver = config.cgroup_driver
    has_systemd = SYSTEMD.is_dir()
    if driver == "systemd" and (not has_systemd or manager.version == 1):
        why = "systemd is not running" if not has_systemd else "it takes cgroup v2"
        return fail("cgroup driver", f"systemd, but {why}", 'set cgroup_driver = "cgroupfs"')
    if driver == "cgroupfs" and has_systemd and manager.version == 2:
        return warn(
            "cgroup driver",
            "cgroupfs, where systemd manages the cgroups as well",
            'set cgroup_driver = "systemd" here and cgroupDriver: systemd in the kubelet',
        )
    return good("cgroup driver", driver)


def _delegation(manager: CgroupManager) -> Finding:
    """Make a cgroup, which is what a read-only mount or a missing delegation refuses."""
    path = f"/criserver-check-{os.getpid()}"
    try:
        manager.create(path)
        manager.delete(path)
    except OSError as err:
        with contextlib.suppress(OSError):
            manager.delete(path)
        return fail(
            "cgroup delegation",
            str(err),
            "/sys/fs/cgroup has to be writable; as a service with Delegate=yes, see "
            "deploy/criserver.service",
        )
    return good("cgroup delegation", "cgroups can be made")


def _user_namespaces() -> Finding:
    try:
        limit = int(USER_NAMESPACES.read_text())
    except FileNotFoundError:
        return warn(
            "user namespaces",
            "the kernel has none: no pods with hostUsers: false",
            "a kernel with CONFIG_USER_NS has them",
        )
    if limit == 0:
        return warn(
            "user namespaces",
            "user.max_user_namespaces is 0: no pods with hostUsers: false",
            "sysctl -w user.max_user_namespaces=15000, and in /etc/sysctl.d",
        )
    return good("user namespaces", f"at most {limit}")
