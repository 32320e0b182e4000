"""AppArmor: the default profile of containers, and which profiles the kernel has."""

from __future__ import annotations

import logging
from pathlib import Path

from api.errors import InvalidArgumentError
from runtimeshim.client import ProgramTimeoutError, Spawner, SpawnerError

log = logging.getLogger(__name__)

ENABLED = Path("/sys/module/apparmor/parameters/enabled")
PROFILES = Path("/sys/kernel/security/apparmor/profiles")  # "NAME (MODE)" a line
PARSER = "/sbin/apparmor_parser"
DEFAULT_PROFILE = "criserver-default"

# To compile the base abstractions takes a second, and ten where the CPU is emulated.
_LOAD_SECONDS = 120.0

# As the peers' default: everything within the container's capabilities, but no mounts and no
# writes to what configures the kernel. Signals come from the runtime and from its own only.
_TEXT = """
#include <tunables/global>

profile {name} flags=(attach_disconnected,mediate_deleted) {{
  #include <abstractions/base>

  network,
  capability,
  file,
  umount,
  signal (receive) peer=unconfined,
  signal (send,receive) peer={name},
  ptrace (trace,read,tracedby,readby) peer={name},

  deny mount,
  deny @{{PROC}}/* w,
  deny @{{PROC}}/{{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9]*}}/** w,
  deny @{{PROC}}/sys/[^k]** w,
  deny @{{PROC}}/sys/kernel/{{?,??,[^s][^h][^m]**}} w,
  deny @{{PROC}}/sysrq-trigger rwklx,
  deny @{{PROC}}/kcore rwklx,
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"""


def is_enabled() -> bool:
    """Tell whether the kernel enforces AppArmor."""
    try:
        return ENABLED.read_text().strip() == "Y"
    except FileNotFoundError:
        return False


def loaded() -> set[str]:
    """Return the names of the profiles that the kernel has. Raises OSError."""
    return {line.rpartition(" (")[0] for line in PROFILES.read_text().splitlines()}


async def load_default(spawner: Spawner) -> str:
    """Load the default profile; returns its name, "" where there is no AppArmor.

    Also "" where it cannot be loaded: containers run without it then, as in the peers, and those
    that ask for a profile are refused.
    """
    if not is_enabled():
        return ""
    profile = _TEXT.format(name=DEFAULT_PROFILE).encode()
    argv = [PARSER, "--replace", "--skip-cache"]
    try:
        done = await spawner.run_program(argv, env={}, stdin=profile, timeout=_LOAD_SECONDS)
    except (SpawnerError, ProgramTimeoutError, OSError) as err:
        log.warning("containers have no default AppArmor profile: %s: %s", PARSER, err)
        return ""
    if done.exit_code != 0:
        reason = done.stderr.decode(errors="replace").strip()
        log.warning("containers have no default AppArmor profile: %s: %s", PARSER, reason)
        return ""
    return DEFAULT_PROFILE


def check_loaded(profile: str) -> None:
    """Refuse a profile that the kernel does not have. Raises InvalidArgumentError."""
    try:
        found = profile in loaded()
    except OSError as err:
        raise InvalidArgumentError(
            f"AppArmor profile {profile!r}: the loaded ones cannot be read: {err}"
        ) from err
    if not found:
        raise InvalidArgumentError(
            f"AppArmor profile {profile!r} is not loaded: load it with apparmor_parser on this node"
        )
