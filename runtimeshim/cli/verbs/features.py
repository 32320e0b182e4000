"""features: what this runtime can do, as the runtime-spec's features.md has it."""

from __future__ import annotations

import json

from runtimeshim.cli.command import OCI_VERSION, Context
from runtimeshim.cli.options import Flag, Options, exactly
from runtimeshim.linux import capabilities, seccomp
from runtimeshim.oci import fields, mount_options, namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FLAGS: tuple[Flag, ...] = ()
STOP_AT = None


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Print the document."""
    exactly(arguments)
    print(json.dumps(features(), indent=1))
    return 0


def features() -> dict[str, Any]:
    """Return the features document: what is implemented, whether or not this kernel has it."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": list(fields.HOOKS),
        "mountOptions": mount_options.known(),
        "linux": {
            "namespaces": sorted(namespaces.FLAGS),
            "capabilities": list(capabilities.KNOWN[: capabilities.last() + 1]),
            "cgroup": {
                "v1": True,
                "v2": True,
                "systemd": True,
                "systemdUser": False,
                "rdma": True,
            },
            "seccomp": {
                "enabled": True,
                "actions": sorted(seccomp.ACTIONS),
                "operators": sorted(seccomp.OPERATORS),
                "knownFlags": sorted(seccomp.FLAGS),
                "supportedFlags": sorted(seccomp.FLAGS),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": True},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
        },
    }
