"""Scheduling, I/O priority, personality and memory policy of a process."""

from __future__ import annotations

import ctypes
import os
import struct

from runtimeshim.linux.syscalls import check, libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

_X86_64 = os.uname().machine == "x86_64"

SYS_SCHED_SETATTR = 314 if _X86_64 else 274
SYS_IOPRIO_SET = 251 if _X86_64 else 30
SYS_PERSONALITY = 135 if _X86_64 else 92
SYS_SET_MEMPOLICY = 238 if _X86_64 else 237

# linux/ioprio.h
IOPRIO_WHO_PROCESS = 1
IOPRIO_CLASS_SHIFT = 13


def sched_setattr(
    pid: int,
    *,
    policy: int,
    flags: int,
    nice: int,
    priority: int,
    runtime: int,
    deadline: int,
    period: int,
) -> None:
    """Set a process's policy (man 2 sched_setattr); times in nanoseconds; 0 is the caller."""
    layout = "=IIQiIQQQ"
    attr = struct.pack(
        layout,
        struct.calcsize(layout),
        policy,
        flags,
        nice,
        priority,
        runtime,
        deadline,
        period,
    )
    call = (ctypes.c_long(SYS_SCHED_SETATTR), ctypes.c_long(pid), attr, ctypes.c_long(0))
    check(libc.syscall(*call), f"sched_setattr(policy {policy})")


def ioprio_set(pid: int, io_class: int, level: int) -> None:
    """Set a process's I/O class (1 realtime, 2 best effort, 3 idle) and level (0 high, 7 low)."""
    value = io_class << IOPRIO_CLASS_SHIFT | level
    call = [SYS_IOPRIO_SET, IOPRIO_WHO_PROCESS, pid, value]
    check(libc.syscall(*map(ctypes.c_long, call)), f"ioprio_set(0x{value:x})")


def personality(value: int) -> None:
    """Set the caller's execution domain (man 2 personality)."""
    check(
        libc.syscall(ctypes.c_long(SYS_PERSONALITY), ctypes.c_ulong(value)),
        f"personality(0x{value:x})",
    )


def set_mempolicy(mode: int, nodes: Collection[int]) -> None:
    """Set the caller's NUMA policy for new memory (man 2 set_mempolicy)."""
    bits = max(nodes, default=0) + 1
    words = (ctypes.c_ulong * (bits // 64 + 1))()
    for node in nodes:
        words[node // 64] |= 1 << node % 64
    # The kernel takes one bit fewer than it is told of.
    length = ctypes.c_ulong(bits + 1)
    mask = ctypes.byref(words) if nodes else None
    call = (ctypes.c_long(SYS_SET_MEMPOLICY), ctypes.c_long(mode), mask, length)
    check(libc.syscall(*call), f"set_mempolicy(0x{mode:x}, {sorted(nodes)})")
