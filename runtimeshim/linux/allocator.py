"""The C library's allocator: man 3 mallopt."""

from __future__ import annotations

from runtimeshim.linux.syscalls import libc

# malloc.h
M_ARENA_MAX = -8


def use_one_arena() -> None:
    """Have all threads of this process allocate from one heap; to be called before there are any.

    glibc gives threads heaps of their own, so that they need not wait for each other; each of them
    keeps what it has once been given. Other C libraries have no such heaps, and no mallopt.
    """
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
