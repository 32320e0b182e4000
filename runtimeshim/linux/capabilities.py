"""Capabilities (man 7 capabilities): names, masks, and the five sets of the calling thread.

A set is an int, bit N for capability N. The structures for capset are made at import, so that
applying allocates next to nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os

from runtimeshim.linux.syscalls import check, libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# linux/capability.h, in the order of their numbers.
KNOWN = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
_NUMBERS = {name: number for number, name in enumerate(KNOWN)}

SYS_CAPGET = 125 if os.uname().machine == "x86_64" else 90
SYS_CAPSET = 126 if os.uname().machine == "x86_64" else 91
LINUX_CAPABILITY_VERSION_3 = 0x20080522

# man 2 prctl
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

_last: int | None = None


class Sets:
    """The five sets of a process, as masks."""

    __slots__ = ("ambient", "bounding", "effective", "inheritable", "permitted")

    def __init__(
        self, bounding: int, effective: int, permitted: int, inheritable: int, ambient: int
    ) -> None:
        self.bounding = bounding
        self.effective = effective
        self.permitted = permitted
        self.inheritable = inheritable
        self.ambient = ambient


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Half(ctypes.Structure):
    """The lower or upper 32 bits of each set."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_header = _Header(LINUX_CAPABILITY_VERSION_3, 0)  # pid 0: the calling thread
_halves = (_Half * 2)()
_capget_arguments = (ctypes.c_long(SYS_CAPGET), ctypes.byref(_header), ctypes.byref(_halves))
_capset_arguments = (ctypes.c_long(SYS_CAPSET), ctypes.byref(_header), ctypes.byref(_halves))


def to_mask(names: Iterable[str]) -> int:
    """Return the set of these names ("CAP_CHOWN"); ValueError names the first unknown one."""
    mask = 0
    for name in names:
        if name not in _NUMBERS:
            raise ValueError(f"unknown capability {name!r}")
        mask |= 1 << _NUMBERS[name]
    return mask


def to_names(mask: int) -> list[str]:
    """Return the names in a set, by number."""
    return [name for number, name in enumerate(KNOWN) if mask >> number & 1]


def last() -> int:
    """Return the highest capability of the running kernel.

    It is read from /proc once: call it before the process leaves the host's mount namespace.
    """
    global _last
    if _last is None:
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
            _last = int(file.read())
    return _last


def current() -> Sets:
    """Return the sets of the calling thread; the ambient set is not asked for and reads 0."""
    check(libc.syscall(*_capget_arguments), "capget")
    low, high = _halves
    return Sets(
        _bounding(),
        high.effective << 32 | low.effective,
        high.permitted << 32 | low.permitted,
        high.inheritable << 32 | low.inheritable,
        0,
    )


def _bounding() -> int:
    mask = 0
    for number in range(last() + 1):
        mask |= (libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0) == 1) << number
    return mask


def prepare(
    wanted: Mapping[str, Sequence[str]], held: Sets | None = None
) -> tuple[Sets, list[str]]:
    """Turn OCI process.capabilities into sets that can be applied, and warnings about the rest.

    What is unknown, or what the caller (`held`, by default the calling thread) does not hold
    itself, cannot be granted: the runtime-spec asks for a warning and no failure. The inheritable
    set is left empty but for what the ambient set requires, whatever the spec says: a program with
    file capabilities would turn it into permitted ones (CVE-2022-29162).
    """
    held = held or current()
    warnings: list[str] = []
    bounding = _granted(wanted, "bounding", held.bounding, warnings)
    permitted = _granted(wanted, "permitted", held.permitted, warnings)
    effective = _granted(wanted, "effective", permitted, warnings)
    ambient = _granted(wanted, "ambient", permitted, warnings)
    return Sets(bounding, effective, permitted, ambient, ambient), warnings


def _granted(
    wanted: Mapping[str, Sequence[str]], kind: str, possible: int, warnings: list[str]
) -> int:
    names = wanted.get(kind) or ()
    unknown = [name for name in names if name not in _NUMBERS]
    mask = to_mask(name for name in names if name in _NUMBERS)
    refused = unknown + to_names(mask & ~possible)
    if refused:
        warnings.append(f"{kind} capabilities that cannot be granted: {', '.join(refused)}")
    return mask & possible


def apply_bounding(mask: int) -> None:
    """Drop from the bounding set all that is not in `mask`; it needs CAP_SETPCAP."""
    for number in range(last() + 1):
        if not mask >> number & 1 and libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            check(
                libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0), f"prctl(CAPBSET_DROP {_name(number)})"
            )


def apply(sets: Sets) -> None:
    """Set the effective, permitted, inheritable and ambient sets of the calling thread.

    After a change to another uid the permitted set must have been kept (PR_SET_KEEPCAPS). The
    bounding set is not touched: see apply_bounding.
    """
    for index, half in enumerate(_halves):
        shift = 32 * index
        half.effective = sets.effective >> shift & 0xFFFFFFFF
        half.permitted = sets.permitted >> shift & 0xFFFFFFFF
        half.inheritable = sets.inheritable >> shift & 0xFFFFFFFF
    check(libc.syscall(*_capset_arguments), "capset")
    _apply_ambient(sets.ambient)


def _apply_ambient(mask: int) -> None:
    result = libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    if result < 0 and ctypes.get_errno() == errno.EINVAL and not mask:
        return  # a kernel without ambient capabilities, and none are asked for
    check(result, "prctl(CAP_AMBIENT_CLEAR_ALL)")
    for number in range(mask.bit_length()):
        if mask >> number & 1:
            check(
                libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0),
                f"prctl(CAP_AMBIENT_RAISE {_name(number)})",
            )


def _name(number: int) -> str:
    return KNOWN[number] if number < len(KNOWN) else str(number)
