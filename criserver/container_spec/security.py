"""Capabilities, seccomp, AppArmor, SELinux, masked and read-only paths of a container's spec."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from api.cri import api_pb2
from criserver.container_spec.fields import absolute_path, invalid, text
from criserver.container_spec.inputs import ContainerSpecInput, HostFacts
from runtimeshim.linux.capabilities import KNOWN
from runtimeshim.oci.paths import MASKED_PATHS, READONLY_PATHS
from runtimeshim.oci.seccomp_default import default_profile

Context = api_pb2.LinuxContainerSecurityContext
Profile = api_pb2.SecurityProfile

DEFAULT_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
ALL = "ALL"

LOCALHOST_PREFIX = "localhost/"
# Names of the fields that SecurityProfile has replaced.
OLD_NAMES = {
    "runtime/default": Profile.RuntimeDefault,
    "docker/default": Profile.RuntimeDefault,
    "unconfined": Profile.Unconfined,
}

# The labels of container-selinux, for what the request leaves open.
SELINUX_DEFAULT = api_pb2.SELinuxOption(
    user="system_u", role="system_r", type="container_t", level="s0"
)


def granted(context: Context, host: HostFacts) -> list[str]:
    """Return the bounding set: what a container may ever hold, in the kernel's order.

    Privileged is all that the host offers. Otherwise the default set (ALL added: the host's, ALL
    dropped: none), then each added one, then without each dropped one.
    """
    if context.privileged:
        return _ordered(host.capabilities)
    added = _names("add_capabilities", context.capabilities.add_capabilities)
    dropped = _names("drop_capabilities", context.capabilities.drop_capabilities)
    names = set(DEFAULT_CAPABILITIES)
    if ALL in added:
        names = set(host.capabilities)
    if ALL in dropped:
        names = set()
    names |= added | _ambient(context)
    return _ordered(names - dropped - {ALL})


def capabilities(context: Context, host: HostFacts) -> dict[str, list[str]]:
    """Return OCI process.capabilities. Inheritable and ambient are empty unless ambient is asked.

    For a user other than root, execve clears what is not ambient; the bounding set stays.
    """
    names = granted(context, host)
    made = {"bounding": names, "effective": names, "permitted": names}
    ambient = [name for name in names if name in _ambient(context)]
    if ambient:
        made |= {"inheritable": ambient, "ambient": ambient}
    return made


def _ambient(context: Context) -> set[str]:
    return _names("add_ambient_capabilities", context.capabilities.add_ambient_capabilities)


def _names(field: str, names: Sequence[str]) -> set[str]:
    """Return the full names; the CRI writes them without CAP_ and in any case."""
    made = set()
    for index, name in enumerate(names):
        full = ALL if name.upper() == ALL else "CAP_" + name.upper().removeprefix("CAP_")
        if full != ALL and full not in KNOWN:
            raise invalid(
                f"linux.security_context.capabilities.{field}[{index}]",
                f"unknown capability {name!r}",
            )
        made.add(full)
    return made


def _ordered(names: Iterable[str]) -> list[str]:
    return sorted(names, key=KNOWN.index)


def seccomp(given: ContainerSpecInput) -> dict[str, Any] | None:
    """Return OCI linux.seccomp, None for unconfined.

    A request that says nothing gets none, as in containerd: the kubelet always says what it wants,
    and critest checks for it. Privileged containers are unconfined whatever they ask for.
    """
    context = given.context
    if context.privileged or not (context.HasField("seccomp") or context.seccomp_profile_path):
        return None
    profile = _seccomp_field(given.context)
    match profile.profile_type:
        case Profile.Unconfined:
            return None
        case Profile.Localhost:
            if given.seccomp_profile is None:
                raise invalid("linux.security_context.seccomp", "the local profile is missing")
            return dict(given.seccomp_profile)
        case _:
            return default_profile(granted(given.context, given.host), given.host.machine)


def localhost_profile(context: Context) -> str:
    """Return the path of the seccomp profile that the caller has to read; "" when none is asked."""
    profile = _seccomp_field(context)
    if context.privileged or profile.profile_type != Profile.Localhost:
        return ""
    return absolute_path("linux.security_context.seccomp.localhost_ref", profile.localhost_ref)


def _seccomp_field(context: Context) -> Profile:
    field = "linux.security_context.seccomp"
    if context.HasField("seccomp"):
        return _checked(field, context.seccomp)
    return _from_old(f"{field}_profile_path", context.seccomp_profile_path)


def _from_old(field: str, name: str) -> Profile:
    if name.startswith(LOCALHOST_PREFIX):
        reference = name.removeprefix(LOCALHOST_PREFIX)
        return Profile(profile_type=Profile.Localhost, localhost_ref=reference)
    if name and name not in OLD_NAMES:
        raise invalid(field, f"unknown profile {name!r}")
    return Profile(profile_type=OLD_NAMES.get(name, Profile.RuntimeDefault))


def _checked(field: str, profile: Profile) -> Profile:
    if profile.profile_type not in Profile.ProfileType.values():
        raise invalid(f"{field}.profile_type", f"unknown value {profile.profile_type}")
    if (profile.profile_type == Profile.Localhost) != bool(profile.localhost_ref):
        raise invalid(f"{field}.localhost_ref", "belongs to a profile of type Localhost, only")
    reference = text(field, profile.localhost_ref).removeprefix(LOCALHOST_PREFIX)
    return Profile(profile_type=profile.profile_type, localhost_ref=reference)


def apparmor_profile(context: Context, host: HostFacts) -> str:
    """Return the AppArmor profile to run under, "" for none.

    Asking for one on a host without AppArmor is an error: the container would run unprotected.
    """
    field = "linux.security_context.apparmor"
    asked = context.HasField("apparmor") or bool(context.apparmor_profile)
    if context.HasField("apparmor"):
        profile = _checked(field, context.apparmor)
    else:
        profile = _from_old(f"{field}_profile", context.apparmor_profile)
    if profile.profile_type == Profile.Unconfined:
        return ""
    if not host.apparmor_profile:
        if asked:
            name = profile.localhost_ref or "the default"
            raise invalid(
                field,
                f"profile {name[:256]!r} cannot be had: this host has no AppArmor; boot it with "
                "apparmor=1, or ask for no profile (Unconfined)",
            )
        return ""
    if profile.profile_type == Profile.Localhost:
        return profile.localhost_ref
    return "" if context.privileged else host.apparmor_profile


def process_label(given: ContainerSpecInput) -> str:
    """Return the SELinux label of the process, "" without SELinux and for privileged containers."""
    if not given.host.selinux or given.context.privileged:
        return ""
    option = _selinux_option(given.context)
    return f"{option.user}:{option.role}:{option.type}:{option.level}"


def mount_label(given: ContainerSpecInput) -> str:
    """Return the SELinux label of the container's own filesystems, "" without SELinux."""
    if not given.host.selinux:
        return ""
    return f"system_u:object_r:container_file_t:{_selinux_option(given.context).level}"


def _selinux_option(context: Context) -> api_pb2.SELinuxOption:
    option = api_pb2.SELinuxOption()
    option.CopyFrom(SELINUX_DEFAULT)
    option.MergeFrom(context.selinux_options)
    for name in ("user", "role", "type", "level"):
        field = f"linux.security_context.selinux_options.{name}"
        value = text(field, getattr(option, name))
        if '"' in value or any(char.isspace() for char in value):
            raise invalid(field, f"{value[:256]!r} is no part of a label")
    return option


def masked_paths(context: Context, user_namespace: bool) -> list[str]:
    """Return the paths to hide: the request's, the default ones where it lists none.

    The kubelet always lists them, but for procMount Unmasked, which needs a user namespace.
    """
    return _paths(context, "masked_paths", context.masked_paths, MASKED_PATHS, user_namespace)


def readonly_paths(context: Context, user_namespace: bool) -> list[str]:
    """Return the paths to make read-only, by the rule of `masked_paths`."""
    return _paths(context, "readonly_paths", context.readonly_paths, READONLY_PATHS, user_namespace)


def _paths(
    context: Context,
    field: str,
    wanted: Sequence[str],
    default: tuple[str, ...],
    user_namespace: bool,
) -> list[str]:
    if context.privileged:
        return []
    if not wanted and not user_namespace:
        return list(default)
    return [
        absolute_path(f"linux.security_context.{field}[{index}]", path)
        for index, path in enumerate(wanted)
    ]
