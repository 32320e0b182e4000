"""A config.json to begin with: a shell in namespaces of its own, with the default confinement."""

from __future__ import annotations

import os

from runtimeshim.oci.paths import MASKED_PATHS, READONLY_PATHS
from runtimeshim.oci.seccomp_default import default_profile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]


def default_spec(oci_version: str) -> dict[str, Any]:
    """Return the specification; its root is `rootfs` in the bundle."""
    sets = dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES)
    return {
        "ociVersion": oci_version,
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "runtimeshim",
        "process": {
            "args": ["sh"],
            "cwd": "/",
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "user": {"uid": 0, "gid": 0},
            "capabilities": sets,
            "noNewPrivileges": True,
        },
        "mounts": _mounts(),
        "linux": {
            "namespaces": [
                {"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")
            ],
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
            "seccomp": default_profile(CAPABILITIES, os.uname().machine),
        },
    }


def _mounts() -> list[dict[str, Any]]:
    safe = ["nosuid", "noexec", "nodev"]
    table = [
        ("/proc", "proc", safe),
        ("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        ("/dev/shm", "tmpfs", [*safe, "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", safe),
        ("/sys", "sysfs", [*safe, "ro"]),
        ("/sys/fs/cgroup", "cgroup", [*safe, "relatime", "ro"]),
    ]
    return [
        {"destination": path, "type": kind, "source": kind, "options": options}
        for path, kind, options in table
    ]
