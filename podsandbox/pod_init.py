"""The program that is pid 1 in a pod's shared PID namespace: it sleeps, for ever.

It is assembled here, byte by byte, so that a reviewer can read all of it and no compiler is needed.
It needs no more than that: SIGCHLD is ignored when it starts (namespaces_worker), so that the
kernel itself reaps what the namespace orphans (man 2 sigaction, SA_NOCLDWAIT), and a pid 1 gets no
signal that it has no handler for. It is run from a sealed memfd that nobody can read or write:
through /proc/1/exe a container can reach neither the interpreter nor any file of the host.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

# linux/elf.h, linux/elf-em.h
_ET_EXEC = 2
_EM = {"x86_64": 62, "aarch64": 183}
_PT_LOAD = 1
_PT_GNU_STACK = 0x6474E551
_PF_X, _PF_W, _PF_R = 1, 2, 4

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")

# linux/memfd.h, since Linux 6.3: needed where the sysctl vm.memfd_noexec is not 0.
_MFD_EXEC = 0x10

_BASE = 0x400000
_PAGE = 0x10000  # aarch64 kernels have pages of up to 64 KiB

_X86_64 = (
    b"\xb8\x22\x00\x00\x00"  # again: mov eax, 34     pause()
    b"\x0f\x05"  #                    syscall
    b"\xeb\xf7"  #                    jmp again       9 bytes back
)

_AARCH64 = struct.pack(
    "<8I",
    0xD2800000,  # again: mov x0, #0     ppoll(NULL, 0, NULL, NULL, 0): no pause() here
    0xD2800001,  #        mov x1, #0
    0xD2800002,  #        mov x2, #0
    0xD2800003,  #        mov x3, #0
    0xD2800004,  #        mov x4, #0
    0xD2800928,  #        mov x8, #73
    0xD4000001,  #        svc #0
    0x17FFFFF9,  #        b again        7 instructions back
)

_CODE = {"x86_64": _X86_64, "aarch64": _AARCH64}


def elf(machine: str) -> bytes:
    """Return the static executable for a machine as uname(2) names it; KeyError for others."""
    headers = _EHDR.size + 2 * _PHDR.size
    code = _CODE[machine]
    size = headers + len(code)
    header = _EHDR.pack(
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0"),  # 64 bits, little-endian, version 1, System V
        _ET_EXEC,
        _EM[machine],
        1,  # version
        _BASE + headers,  # entry point
        _EHDR.size,  # program headers follow
        0,  # no section headers
        0,  # flags
        _EHDR.size,
        _PHDR.size,
        2,  # program headers
        0,
        0,
        0,
    )
    # One segment, readable and executable, that is the whole file; and a stack that is not
    # executable.
    load = _PHDR.pack(_PT_LOAD, _PF_R | _PF_X, 0, _BASE, _BASE, size, size, _PAGE)
    stack = _PHDR.pack(_PT_GNU_STACK, _PF_R | _PF_W, 0, 0, 0, 0, 0, 16)
    return header + load + stack + code


def sealed(machine: str) -> int:
    """Return an fd of the program in a memfd that nobody can change any more.

    Its mode allows nothing but to execute it: the kernel makes a process whose program its user
    cannot read undumpable, so that its /proc files belong to root (man 5 proc).
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("pod-init", flags | _MFD_EXEC)
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        fd = os.memfd_create("pod-init", flags)
    os.write(fd, elf(machine))
    os.fchmod(fd, 0o111)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd
