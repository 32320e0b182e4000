"""The device allowlist of cgroup v2: an eBPF program of type BPF_PROG_TYPE_CGROUP_DEVICE.

The program gets a struct bpf_cgroup_dev_ctx (linux/bpf.h) and returns 1 to allow an access:

    u32 access_type   access << 16 | type
    u32 major
    u32 minor
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from runtimeshim.linux.cgroups.devices import ANY, Rule
from runtimeshim.linux.cgroups.files import CgroupError
from runtimeshim.linux.syscalls import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SYS_BPF = 321 if os.uname().machine == "x86_64" else 280

# linux/bpf.h
BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_DETACH = 9
BPF_PROG_GET_FD_BY_ID = 13
BPF_PROG_QUERY = 16
BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6
BPF_F_ALLOW_MULTI = 2
DEVICE_TYPES = {"b": 1, "c": 2}
ACCESS_BITS = {"m": 1, "r": 2, "w": 4}
ALL_ACCESS = 7

# Programs that one cgroup can have at most (BPF_CGROUP_MAX_PROGS).
MAX_PROGRAMS = 64
LICENSE = b"Apache\0"
# The verifier gives up when a signal comes (EAGAIN), SIGCHLD for one; libbpf tries as often.
LOAD_ATTEMPTS = 5
# Room for what the verifier says when it refuses a program.
LOG_SIZE = 64 * 1024

# Instructions (class | source | operation) of the eBPF instruction set, RFC 9669.
_LOAD_WORD = 0x61
_MOVE = 0xB4
_MOVE_REGISTER = 0xBC
_AND = 0x54
_SHIFT_RIGHT = 0x74
_JUMP_UNEQUAL = 0x56
_JUMP_UNEQUAL_REGISTER = 0x5E
_JUMP_EQUAL = 0x16
_EXIT = 0x95

_RESULT, _CONTEXT, _TYPE, _ACCESS, _MAJOR, _MINOR = range(6)


def _instruction(
    code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0
) -> bytes:
    return struct.pack("<BBhI", code, source << 4 | target, offset, value)


def program(rules: Sequence[Rule]) -> bytes:
    """Return the program for a list of rules of which the last that matches decides.

    A rule to allow matches an access that is part of its own; a rule to deny, one that has
    anything in common with its own. Without a match the answer is no.
    """
    code = _prologue()
    for rule in reversed(rules):
        code += _block(rule)
        if rule.kind == "a":
            return code  # nothing before it can be reached, and the verifier refuses dead code
    return code + _return(0)


def _prologue() -> bytes:
    return b"".join(
        (
            _instruction(_LOAD_WORD, _TYPE, _CONTEXT, 0),
            _instruction(_AND, _TYPE, value=0xFFFF),
            _instruction(_LOAD_WORD, _ACCESS, _CONTEXT, 0),
            _instruction(_SHIFT_RIGHT, _ACCESS, value=16),
            _instruction(_LOAD_WORD, _MAJOR, _CONTEXT, 4),
            _instruction(_LOAD_WORD, _MINOR, _CONTEXT, 8),
        )
    )


def _return(value: int) -> bytes:
    return _instruction(_MOVE, _RESULT, value=value) + _instruction(_EXIT)


class _Test:
    """An instruction whose jump leaves the block; its offset is known when the block is."""

    def __init__(self, code: int, target: int, source: int = 0, value: int = 0) -> None:
        self.code, self.target, self.source, self.value = code, target, source, value


def _block(rule: Rule) -> bytes:
    body: list[bytes | _Test] = [*_tests(rule), _instruction(_MOVE, _RESULT, value=int(rule.allow))]
    body.append(_instruction(_EXIT))
    out = b""
    for index, part in enumerate(body):
        if isinstance(part, _Test):
            beyond = len(body) - index - 1
            part = _instruction(part.code, part.target, part.source, beyond, part.value)
        out += part
    return out


def _tests(rule: Rule) -> list[bytes | _Test]:
    if rule.kind == "a":
        return []
    tests: list[bytes | _Test] = [_Test(_JUMP_UNEQUAL, _TYPE, value=DEVICE_TYPES[rule.kind])]
    access = sum(ACCESS_BITS[letter] for letter in set(rule.access))
    if access != ALL_ACCESS:
        # The context register is not read again after the prologue: it serves as scratch.
        tests.append(_instruction(_MOVE_REGISTER, _CONTEXT, _ACCESS))
        tests.append(_instruction(_AND, _CONTEXT, value=access))
        if rule.allow:
            tests.append(_Test(_JUMP_UNEQUAL_REGISTER, _CONTEXT, _ACCESS))
        else:
            tests.append(_Test(_JUMP_EQUAL, _CONTEXT, value=0))
    if rule.major != ANY:
        tests.append(_Test(_JUMP_UNEQUAL, _MAJOR, value=rule.major))
    if rule.minor != ANY:
        tests.append(_Test(_JUMP_UNEQUAL, _MINOR, value=rule.minor))
    return tests


def attach(directory: str, code: bytes) -> None:
    """Load the program and make it the only device program of the cgroup `directory`.

    The new one is attached before the old ones go: the kernel asks all of them, so that at no
    moment more is allowed than one of the two lists does.
    """
    cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        old = _attached(cgroup, directory)
        loaded = _load(code)
        try:
            attributes = struct.pack("=IIII", cgroup, loaded, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI)
            _bpf(BPF_PROG_ATTACH, attributes, "attach device filter", directory)
        finally:
            os.close(loaded)
        for identifier in old:
            _detach(cgroup, identifier, directory)
    finally:
        os.close(cgroup)


def _load(code: bytes) -> int:
    instructions = ctypes.create_string_buffer(code, len(code))
    license_ = ctypes.create_string_buffer(LICENSE, len(LICENSE))
    log = ctypes.create_string_buffer(LOG_SIZE)
    attributes = struct.pack(
        "=IIQQIIQ",
        BPF_PROG_TYPE_CGROUP_DEVICE,
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(license_),
        1,
        LOG_SIZE,
        ctypes.addressof(log),
    )
    for attempt in range(1, LOAD_ATTEMPTS + 1):
        try:
            return _bpf(BPF_PROG_LOAD, attributes, "load device filter")[0]
        except CgroupError as err:
            if err.errno == errno.EAGAIN and attempt < LOAD_ATTEMPTS:
                continue
            verdict = log.value.decode(errors="replace").strip()
            raise CgroupError(err.errno, f"{err.strerror}; the verifier says: {verdict}") from err
    raise AssertionError("the last attempt returns or raises")


def _attached(cgroup: int, directory: str) -> list[int]:
    """Return the ids of the device programs that the cgroup itself has."""
    identifiers = (ctypes.c_uint32 * MAX_PROGRAMS)()
    attributes = struct.pack(
        "=IIIIQI",
        cgroup,
        BPF_CGROUP_DEVICE,
        0,
        0,
        ctypes.addressof(identifiers),
        MAX_PROGRAMS,
    )
    _, answer = _bpf(BPF_PROG_QUERY, attributes, "query device filters", directory)
    (count,) = struct.unpack_from("=I", answer, 24)
    return list(identifiers[:count])


def _detach(cgroup: int, identifier: int, directory: str) -> None:
    attributes = struct.pack("=II", identifier, 0)
    old, _ = _bpf(BPF_PROG_GET_FD_BY_ID, attributes, "open device filter", directory)
    try:
        attributes = struct.pack("=III", cgroup, old, BPF_CGROUP_DEVICE)
        _bpf(BPF_PROG_DETACH, attributes, "detach device filter", directory)
    finally:
        os.close(old)


def _bpf(command: int, attributes: bytes, what: str, path: str | None = None) -> tuple[int, bytes]:
    """Call bpf(2); returns its result and the attributes, which the kernel may have changed."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = libc.syscall(
        ctypes.c_long(SYS_BPF),
        ctypes.c_long(command),
        ctypes.byref(buffer),
        ctypes.c_long(len(attributes)),
    )
    if result < 0:
        number = ctypes.get_errno() or errno.EIO
        raise CgroupError(number, f"bpf: {what}: {os.strerror(number)}", path)
    return int(result), buffer.raw
