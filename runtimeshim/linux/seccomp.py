"""Seccomp: OCI linux.seccomp compiled to classic BPF by libseccomp, and its installation.

Compiling (some milliseconds) and installing (one system call) are apart: the program is made before
the container is forked, and can be kept, since it depends on nothing but the profile, the machine
and the library.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from runtimeshim.linux.syscalls import check, libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

LIBRARY = "libseccomp.so.2"

SYS_SECCOMP = 317 if os.uname().machine == "x86_64" else 277
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
SECCOMP_SET_MODE_FILTER = 1
# linux/filter.h: what the kernel takes.
BPF_MAXINSNS = 4096
BPF_INSTRUCTION_SIZE = 8

# seccomp.h. The lower 16 bits of ERRNO and TRACE carry a value.
ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
WITH_VALUE = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
# Default actions under which a system call that nobody thought of still works.
PERMISSIVE = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
# linux/seccomp.h. TSYNC is for other threads, and an init has none.
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0,
    "SECCOMP_FILTER_FLAG_LOG": 1 << 1,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 1 << 2,
    "SECCOMP_FILTER_FLAG_NEW_LISTENER": 1 << 3,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 1 << 5,
}
MAX_ARGUMENTS = 6

_ATTRIBUTE_NO_NEW_PRIVS = 3
_ATTRIBUTE_OPTIMIZE = 8
_BINARY_TREE = 2
# The tree pays off for long lists only, and libseccomp up to 2.5.4 fails with one and no rule.
_TREE_FROM = 32
_UNKNOWN_SYSCALL = -1

# linux/audit.h
AUDIT_ARCH_X86_64 = 0xC000003E
SCMP_ARCH_X32 = 0x4000003E
X32_BIT = 1 << 30


class SeccompError(Exception):
    """A profile that cannot be compiled (names the field), or a library that is missing."""


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp"""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "seccomp_init": (ctypes.c_void_p, [ctypes.c_uint32]),
    "seccomp_release": (None, [ctypes.c_void_p]),
    "seccomp_arch_native": (ctypes.c_uint32, []),
    "seccomp_arch_resolve_name": (ctypes.c_uint32, [ctypes.c_char_p]),
    "seccomp_arch_add": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint32]),
    "seccomp_attr_set": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]),
    "seccomp_syscall_resolve_name": (ctypes.c_int, [ctypes.c_char_p]),
    "seccomp_syscall_resolve_name_arch": (ctypes.c_int, [ctypes.c_uint32, ctypes.c_char_p]),
    "seccomp_rule_add_array": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p],
    ),
    "seccomp_export_bpf": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int]),
}
_library: Any = None


def load_library() -> Any:
    """Load libseccomp once; SeccompError when the machine lacks it."""
    global _library
    if _library is None:
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError as err:
            raise SeccompError(f"{LIBRARY} cannot be loaded: {err}; install libseccomp2") from err
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        _library = library
    return _library


def compile_profile(profile: Mapping[str, Any]) -> bytes:
    """Compile OCI linux.seccomp into an array of struct sock_filter for this machine.

    Names that libseccomp does not know are passed over, as in runc. System calls newer than the
    newest one in the profile get ENOSYS instead of the default action, so that programs fall back
    to an older one.
    """
    library = load_library()
    default = _action(profile, "defaultAction", "defaultErrnoRet", "linux.seccomp")
    _refuse_notify(profile)
    architectures = _architectures(library, profile)
    context = library.seccomp_init(default)
    if not context:
        raise SeccompError("seccomp_init: out of memory")
    try:
        _configure(library, context, profile, architectures)
        _add_rules(library, context, profile, default)
        program = _export(library, context)
    finally:
        library.seccomp_release(context)
    program = _enosys_stub(library, profile, architectures) + program
    if len(program) > BPF_MAXINSNS * BPF_INSTRUCTION_SIZE:
        raise SeccompError(
            f"the profile compiles to {len(program) // BPF_INSTRUCTION_SIZE} instructions; "
            f"the kernel takes {BPF_MAXINSNS}"
        )
    return program


def _action(entry: Mapping[str, Any], key: str, value_key: str, where: str) -> int:
    name = entry.get(key)
    if not isinstance(name, str) or name not in ACTIONS:
        raise SeccompError(f"{where}.{key}: unknown action {name!r}")
    if name not in WITH_VALUE:
        return ACTIONS[name]
    value = entry.get(value_key)
    if value is None:
        value = errno.EPERM
    return ACTIONS[name] | _number(value, f"{where}.{value_key}", 0xFFFF)


def _number(value: object, where: str, maximum: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= maximum:
        raise SeccompError(f"{where}: {value!r} is not a number from 0 to {maximum}")
    return value


def _refuse_notify(profile: Mapping[str, Any]) -> None:
    """Refuse notify where the start itself would wait for an agent that is not there yet."""
    if profile["defaultAction"] == "SCMP_ACT_NOTIFY":
        raise SeccompError("linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be the default")


def needs_listener(profile: Mapping[str, Any]) -> bool:
    """Tell whether the profile asks for a notify fd (SECCOMP_FILTER_FLAG_NEW_LISTENER)."""
    return any(rule.get("action") == "SCMP_ACT_NOTIFY" for rule in profile.get("syscalls") or ())


def _architectures(library: Any, profile: Mapping[str, Any]) -> list[int]:
    """Return libseccomp's tokens of the profile's architectures, the native one always among them.

    An architecture that is not on the list gets the library's action for bad ones: kill.
    """
    tokens = [int(library.seccomp_arch_native())]
    for index, name in enumerate(profile.get("architectures") or ()):
        short = str(name).removeprefix("SCMP_ARCH_").lower()
        token = library.seccomp_arch_resolve_name(short.encode())
        if not token:
            raise SeccompError(f"linux.seccomp.architectures[{index}]: unknown {name!r}")
        if token not in tokens:
            tokens.append(token)
    return tokens


def _configure(library: Any, context: int, profile: Mapping[str, Any], tokens: list[int]) -> None:
    for token in tokens[1:]:  # the native one is there from the start
        _succeed(library.seccomp_arch_add(context, token), f"seccomp_arch_add({token:#x})")
    # no_new_privs is the process's own business, not the filter's.
    _succeed(
        library.seccomp_attr_set(context, _ATTRIBUTE_NO_NEW_PRIVS, 0), "seccomp_attr_set(CTL_NNP)"
    )
    names = sum(len(rule.get("names") or ()) for rule in profile.get("syscalls") or ())
    if names > _TREE_FROM:
        _succeed(
            library.seccomp_attr_set(context, _ATTRIBUTE_OPTIMIZE, _BINARY_TREE),
            "seccomp_attr_set(CTL_OPTIMIZE)",
        )


def _succeed(result: int, call: str) -> None:
    """Raise for a negative errno, which is how libseccomp reports."""
    if result < 0:
        raise SeccompError(f"{call}: {os.strerror(-result)}")


def _add_rules(library: Any, context: int, profile: Mapping[str, Any], default: int) -> None:
    for index, rule in enumerate(profile.get("syscalls") or ()):
        where = f"linux.seccomp.syscalls[{index}]"
        action = _action(rule, "action", "errnoRet", where)
        names = rule.get("names") or ()
        if not names or not all(isinstance(name, str) and name for name in names):
            raise SeccompError(f"{where}.names: not a list of system call names")
        if action == ACTIONS["SCMP_ACT_NOTIFY"] and "write" in names:
            raise SeccompError(f"{where}.names: write cannot be notified: the start needs it")
        if action == default:
            continue  # redundant, and an error for libseccomp
        groups = _comparisons(rule.get("args") or (), where)
        for name in names:
            _add_rule(library, context, action, name, groups)


def _comparisons(arguments: Sequence[Mapping[str, Any]], where: str) -> list[Any]:
    """Return the arrays of comparisons, each of which makes a rule: all of one array must hold.

    libseccomp takes each argument once in a rule. Where a profile compares one twice, each of its
    comparisons becomes a rule of its own, as in runc, and any of them is enough.
    """
    made = [_comparison(each, f"{where}.args[{i}]") for i, each in enumerate(arguments)]
    if len({each.argument for each in made}) < len(made):
        return [(_Comparison * 1)(each) for each in made]
    return [(_Comparison * len(made))(*made)]


def _comparison(argument: Mapping[str, Any], where: str) -> _Comparison:
    operator = OPERATORS.get(str(argument.get("op")))
    if operator is None:
        raise SeccompError(f"{where}.op: unknown operator {argument.get('op')!r}")
    most = (1 << 64) - 1
    return _Comparison(
        _number(argument.get("index"), f"{where}.index", MAX_ARGUMENTS - 1),
        operator,
        _number(argument.get("value", 0), f"{where}.value", most),
        _number(argument.get("valueTwo", 0), f"{where}.valueTwo", most),
    )


def _add_rule(library: Any, context: int, action: int, name: str, groups: list[Any]) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number == _UNKNOWN_SYSCALL:
        return
    for group in groups:
        _succeed(
            library.seccomp_rule_add_array(context, action, number, len(group), group),
            f"seccomp_rule_add({name})",
        )


def _export(library: Any, context: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _succeed(library.seccomp_export_bpf(context, fd), "seccomp_export_bpf")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


# Classic BPF (linux/bpf_common.h) over struct seccomp_data: u32 nr at 0, u32 arch at 4.
_LOAD = 0x20
_JUMP = 0x05
_JUMP_EQUAL = 0x15
_JUMP_GREATER = 0x25
_JUMP_BITS = 0x45
_RETURN = 0x06
_NR, _ARCH = 0, 4


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _enosys_stub(library: Any, profile: Mapping[str, Any], tokens: list[int]) -> bytes:
    """Return what stands before the filter: ENOSYS for numbers above the profile's highest.

    A profile that denies by default means "what I do not know of"; EPERM for a system call that is
    younger than the profile makes libc give up instead of falling back.
    """
    default = profile["defaultAction"]
    if default in PERMISSIVE or profile.get("defaultErrnoRet") == errno.ENOSYS:
        return b""
    newest: dict[int, dict[bool, int]] = {}
    for token in tokens:
        is_x32 = token == SCMP_ARCH_X32
        highest = _highest(library, profile, token)
        if highest is not None:
            newest.setdefault(AUDIT_ARCH_X86_64 if is_x32 else token, {})[is_x32] = highest
    if not newest:
        return b""
    stub = b""
    for arch, numbers in reversed(newest.items()):
        stub = _section(arch, numbers, len(stub) // BPF_INSTRUCTION_SIZE) + stub
    return _instruction(_LOAD, _ARCH) + stub


def _section(arch: int, highest: Mapping[bool, int], behind: int) -> bytes:
    """Return the test for one architecture, with `behind` instructions between it and the filter.

    x32 has the audit architecture of x86_64 and a bit set in every number, which makes them all
    greater than those of x86_64: each has its own test. If only x86_64 is in the profile, numbers
    with the bit are left to the filter.
    """
    body = [_instruction(_LOAD, _NR)]
    if len(highest) == 2:
        body.append(_instruction(_JUMP_BITS, X32_BIT, 1, 0))
        body.append(_instruction(_JUMP_GREATER, highest[False], 1, 2))
        body.append(_instruction(_JUMP_GREATER, highest[True], 0, 1))
    elif arch == AUDIT_ARCH_X86_64:
        (only,) = highest.values()
        body.append(_instruction(_JUMP_BITS, X32_BIT, 2, 0))
        body.append(_instruction(_JUMP_GREATER, only, 0, 1))
    else:
        body.append(_instruction(_JUMP_GREATER, highest[False], 0, 1))
    body.append(_instruction(_RETURN, ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS))
    body.append(_instruction(_JUMP, behind))
    return _instruction(_JUMP_EQUAL, arch, 0, len(body)) + b"".join(body)


def _highest(library: Any, profile: Mapping[str, Any], token: int) -> int | None:
    """Return the highest number that the profile names on an architecture, None without any.

    On 32-bit ARM a private call (cacheflush, 0xf0002) sets it, as in runc: no ENOSYS below that.
    """
    numbers = [
        library.seccomp_syscall_resolve_name_arch(token, name.encode())
        for rule in profile.get("syscalls") or ()
        for name in rule["names"]
    ]
    return max((number for number in numbers if number >= 0), default=None)


def installer(program: bytes, flags: Sequence[str] = ()) -> Callable[[], int]:
    """Return a function that installs the program on the calling thread by one system call.

    Everything it needs is allocated here, because the filter may forbid what an allocator calls.
    The function returns the notify fd when SECCOMP_FILTER_FLAG_NEW_LISTENER is among the flags,
    else 0. Without no_new_privs the caller must hold CAP_SYS_ADMIN.
    """
    bits = 0
    for flag in flags:
        if flag not in FLAGS:
            raise SeccompError(f"linux.seccomp.flags: unknown flag {flag!r}")
        bits |= FLAGS[flag]
    header = _FilterProgram(len(program) // BPF_INSTRUCTION_SIZE, program)
    arguments = (
        ctypes.c_long(SYS_SECCOMP),
        ctypes.c_long(SECCOMP_SET_MODE_FILTER),
        ctypes.c_long(bits),
        ctypes.byref(header),
    )
    address = ctypes.addressof(header)

    def install(_keep: object = header) -> int:
        result = libc.syscall(*arguments)
        if result < 0 and not bits and ctypes.get_errno() == errno.ENOSYS:  # before Linux 3.17
            result = libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, address, 0, 0)
        return check(int(result), "seccomp(SET_MODE_FILTER)")

    return install
