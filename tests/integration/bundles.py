"""OCI bundles of Debian's busybox, for the tests of spawner, shim and executor."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from runtimeshim.client import Rootfs

BUSYBOX = Path("/bin/busybox")
DEFAULT_CAPABILITIES = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
]
MASKED = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/proc/acpi"]
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def make_layer(directory: Path) -> Path:
    """Unpack a busybox root with its applets and two users."""
    for name in ("bin", "etc", "tmp", "root", "proc", "sys", "dev"):
        (directory / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, directory / "bin/busybox")
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True)
    for applet in applets.stdout.split():
        if applet != "busybox":
            os.link(directory / "bin/busybox", directory / "bin" / applet)
    (directory / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/home/web:/bin/sh\n"
    )
    (directory / "etc/group").write_text("root:x:0:\nweb:x:1000:\n")
    (directory / "tmp").chmod(0o1777)
    return directory


def overlay(layer: Path, directory: Path) -> Rootfs:
    """Prepare a writable layer over `layer`."""
    for name in ("upper", "work"):
        (directory / name).mkdir(parents=True)
    return Rootfs((str(layer),), str(directory / "upper"), str(directory / "work"))


def spec(args: list[str], cgroup: str, **process: Any) -> dict[str, Any]:
    """Return a runtime-spec as a CRI container gets it, without a sandbox."""
    capabilities = DEFAULT_CAPABILITIES
    return {
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "hostname": "inside",
        "process": {
            "args": args,
            "cwd": "/",
            "env": ["PATH=/bin"],
            "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
            "noNewPrivileges": True,
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            **process,
        },
        "mounts": [
            mount("/proc", "proc", "nosuid", "noexec", "nodev"),
            mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount(
                "/dev/pts",
                "devpts",
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ),
            mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
            mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
            mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
            mount("/sys/fs/cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"),
        ],
        "linux": {
            "namespaces": [
                {"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network", "cgroup")
            ],
            "cgroupsPath": cgroup,
            "maskedPaths": MASKED,
            "readonlyPaths": READONLY,
        },
    }


def mount(destination: str, fstype: str, *options: str) -> dict[str, Any]:
    """Return a mount whose source is its type's name."""
    return {
        "destination": destination,
        "type": fstype,
        "source": fstype,
        "options": list(options),
    }


def write(bundle: Path, content: dict[str, Any]) -> Path:
    """Write a bundle with an empty mount point for its root."""
    (bundle / "rootfs").mkdir(parents=True)
    bundle.chmod(0o700)
    (bundle / "config.json").write_text(json.dumps(content))
    return bundle
