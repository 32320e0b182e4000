"""The option strings of a spec's mounts, as the kernel's attributes (runtime-spec, config.md)."""

from __future__ import annotations

from runtimeshim.linux import mounts as m
from runtimeshim.oci.errors import SpecError

# option -> (attributes set, attributes cleared), for one mount and, with an r in front, for all
# below it as well.
_ATTRIBUTES = {
    "ro": (m.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, m.MOUNT_ATTR_RDONLY),
    "nosuid": (m.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, m.MOUNT_ATTR_NOSUID),
    "nodev": (m.MOUNT_ATTR_NODEV, 0),
    "dev": (0, m.MOUNT_ATTR_NODEV),
    "noexec": (m.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, m.MOUNT_ATTR_NOEXEC),
    "nodiratime": (m.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, m.MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (m.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, m.MOUNT_ATTR_NOSYMFOLLOW),
    # The access-time modes are one field: whoever sets it clears it first.
    "noatime": (m.MOUNT_ATTR_NOATIME, m.MOUNT_ATTR__ATIME),
    "atime": (0, m.MOUNT_ATTR__ATIME),
    "relatime": (0, m.MOUNT_ATTR__ATIME),
    "norelatime": (m.MOUNT_ATTR_STRICTATIME, m.MOUNT_ATTR__ATIME),
    "strictatime": (m.MOUNT_ATTR_STRICTATIME, m.MOUNT_ATTR__ATIME),
    "nostrictatime": (0, m.MOUNT_ATTR__ATIME),
}

PROPAGATION = {
    "private": m.MS_PRIVATE,
    "rprivate": m.MS_PRIVATE | m.MS_REC,
    "shared": m.MS_SHARED,
    "rshared": m.MS_SHARED | m.MS_REC,
    "slave": m.MS_SLAVE,
    "rslave": m.MS_SLAVE | m.MS_REC,
    "unbindable": m.MS_UNBINDABLE,
    "runbindable": m.MS_UNBINDABLE | m.MS_REC,
}

# Known to mount(8), without a meaning of their own here.
_IGNORED = frozenset({"defaults", "bind", "rbind", "loud", "silent"})

# The runtime's own work (config.md, "Linux mount options").
_EXTENSIONS = frozenset({"idmap", "ridmap", "tmpcopyup"})


class MountOptions:
    """A mount's options, sorted by what the kernel does with them."""

    __slots__ = (
        "bind",
        "clear",
        "clear_recursive",
        "copy_up",
        "data",
        "propagation",
        "recursive",
        "recursive_idmap",
        "set_",
        "set_recursive",
    )

    def __init__(
        self,
        *,
        bind: bool,
        recursive: bool,
        set_: int,
        clear: int,
        set_recursive: int,
        clear_recursive: int,
        propagation: tuple[int, ...],
        data: tuple[tuple[str, str | None], ...],
        copy_up: bool,
        recursive_idmap: bool,
    ) -> None:
        self.bind = bind
        self.recursive = recursive
        self.set_ = set_
        self.clear = clear
        self.set_recursive = set_recursive
        self.clear_recursive = clear_recursive
        self.propagation = propagation
        self.data = data  # for the filesystem itself
        self.copy_up = copy_up
        self.recursive_idmap = recursive_idmap


def parse(options: list[str], fstype: str, field: str) -> MountOptions:
    """Sort option strings; what is unknown goes to the filesystem. Raises SpecError."""
    plain = [0, 0]
    recursive = [0, 0]
    propagation = []
    data: list[tuple[str, str | None]] = []
    for option in options:
        if option in _ATTRIBUTES:
            _add(plain, _ATTRIBUTES[option])
        elif option in PROPAGATION:
            propagation.append(PROPAGATION[option])
        elif option[:1] == "r" and option[1:] in _ATTRIBUTES:
            _add(recursive, _ATTRIBUTES[option[1:]])
        elif option not in _IGNORED and option not in _EXTENSIONS:
            key, separator, value = option.partition("=")
            data.append((key, value if separator else None))
    bind = fstype == "bind" or "bind" in options or "rbind" in options
    copy_up = "tmpcopyup" in options
    if copy_up and fstype != "tmpfs":
        raise SpecError(f"{field}.options: tmpcopyup is for a tmpfs, not for {fstype}")
    return MountOptions(
        bind=bind,
        recursive="rbind" in options,
        set_=plain[0],
        clear=plain[1],
        set_recursive=recursive[0],
        clear_recursive=recursive[1],
        propagation=tuple(propagation),
        data=tuple(data),
        copy_up=copy_up,
        recursive_idmap="ridmap" in options,
    )


def _add(into: list[int], change: tuple[int, int]) -> None:
    """Let a later option win over an earlier one."""
    set_, clear = change
    into[0] = (into[0] & ~clear) | set_
    into[1] = (into[1] & ~set_) | clear


def known() -> list[str]:
    """Return every option with a meaning here, sorted."""
    recursive = (f"r{name}" for name in _ATTRIBUTES)
    return sorted({*_ATTRIBUTES, *recursive, *PROPAGATION, *_IGNORED, *_EXTENSIONS})
