"""Seccomp profiles compiled by the real library, and their programs run by a small interpreter."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest

from runtimeshim.linux import seccomp
from runtimeshim.linux.seccomp import SeccompError, compile_profile, installer
from runtimeshim.oci.seccomp_default import default_profile

X86_64, I386, AARCH64, ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028
ALLOW = 0x7FFF0000
EPERM = 0x00050000 | errno.EPERM
ENOSYS = 0x00050000 | errno.ENOSYS
KILL = 0


def run(program: bytes, number: int, *arguments: int, arch: int = X86_64) -> int:
    """Run classic BPF on one struct seccomp_data; returns the verdict."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    instructions = list(struct.iter_unpack("=HBBI", program))
    accumulator = counter = 0
    while True:
        code, if_true, if_false, value = instructions[counter]
        counter += 1
        match code:
            case 0x20:
                accumulator = struct.unpack_from("=I", data, value)[0]
            case 0x54:
                accumulator &= value
            case 0x05:
                counter += value
            case 0x15:
                counter += if_true if accumulator == value else if_false
            case 0x25:
                counter += if_true if accumulator > value else if_false
            case 0x35:
                counter += if_true if accumulator >= value else if_false
            case 0x45:
                counter += if_true if accumulator & value else if_false
            case 0x06:
                return value
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


def profile(*rules: dict[str, Any], **fields: Any) -> dict[str, Any]:
    base = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": list(rules),
    }
    return base | fields


def allow(*names: str, **fields: Any) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ALLOW"} | fields


READ, WRITE, SOCKET, CLONE, UNSHARE, CLONE3 = 0, 1, 41, 56, 272, 435
FUTURE = 4000


def test_what_is_named_is_allowed_and_the_rest_gets_the_default() -> None:
    program = compile_profile(profile(allow("read", "openat2")))
    assert run(program, READ) == ALLOW
    assert run(program, WRITE) == EPERM


def test_calls_newer_than_the_profile_do_not_exist() -> None:
    program = compile_profile(profile(allow("read", "openat2")))
    assert run(program, 437) == ALLOW
    assert run(program, 438) == ENOSYS
    assert run(program, FUTURE) == ENOSYS


@pytest.mark.parametrize("action", ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"])
def test_a_permissive_default_is_asked_about_new_calls_too(action: str) -> None:
    rule = {"names": ["write"], "action": "SCMP_ACT_ERRNO"}
    program = compile_profile(profile(rule, defaultAction=action))
    assert run(program, FUTURE) & 0xFFFF0000 == seccomp.ACTIONS[action]


def test_each_architecture_has_its_own_newest_call() -> None:
    architectures = ["SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_X86_64"]
    program = compile_profile(profile(allow("read", "getcpu"), architectures=architectures))
    assert [run(program, n) for n in (READ, 309, 310)] == [ALLOW, ALLOW, ENOSYS]
    assert [run(program, n, arch=I386) for n in (3, 318, 319)] == [ALLOW, ALLOW, ENOSYS]
    x32 = 1 << 30
    assert [run(program, n + x32) for n in (READ, 309, 310)] == [ALLOW, ALLOW, ENOSYS]
    assert run(program, READ, arch=ARM) == KILL


def test_x32_calls_die_where_only_x86_64_is_listed() -> None:
    program = compile_profile(profile(allow("read")))
    assert run(program, READ | 1 << 30) == KILL


def test_errno_values_are_the_profiles() -> None:
    rule = {"names": ["write"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7}
    program = compile_profile(profile(rule, allow("clone3"), defaultErrnoRet=99))
    assert run(program, WRITE) == 0x00050000 | 7
    assert run(program, SOCKET) == 0x00050000 | 99


def test_a_default_of_enosys_needs_no_stub() -> None:
    program = compile_profile(profile(allow("read"), defaultErrnoRet=errno.ENOSYS))
    assert run(program, FUTURE) == ENOSYS
    assert len(program) < len(compile_profile(profile(allow("read"))))


@pytest.mark.parametrize(
    ("operator", "value", "two", "holds", "fails"),
    [
        ("EQ", 5, 0, 5, 6),
        ("NE", 5, 0, 6, 5),
        ("LT", 5, 0, 4, 5),
        ("LE", 5, 0, 5, 6),
        ("GT", 5, 0, 6, 5),
        ("GE", 5, 0, 5, 4),
        ("MASKED_EQ", 0xF0, 0x30, 0x3F, 0x4F),
        ("EQ", 1 << 40, 0, 1 << 40, 0),
    ],
)
def test_arguments_are_compared(
    operator: str, value: int, two: int, holds: int, fails: int
) -> None:
    argument = {"index": 0, "value": value, "valueTwo": two, "op": f"SCMP_CMP_{operator}"}
    program = compile_profile(profile(allow("socket", args=[argument])))
    assert run(program, SOCKET, holds) == ALLOW
    assert run(program, SOCKET, fails) == EPERM


def test_all_comparisons_of_a_rule_must_hold() -> None:
    arguments = [
        {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
        {"index": 1, "value": 2, "op": "SCMP_CMP_EQ"},
    ]
    program = compile_profile(profile(allow("socket", args=arguments)))
    assert run(program, SOCKET, 1, 2) == ALLOW
    assert run(program, SOCKET, 1, 3) == EPERM


def test_two_comparisons_of_one_argument_are_two_rules() -> None:
    arguments = [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"} for value in (1, 2)]
    program = compile_profile(profile(allow("socket", args=arguments)))
    assert [run(program, SOCKET, value) for value in (1, 2, 3)] == [ALLOW, ALLOW, EPERM]


def test_names_that_nobody_knows_are_passed_over() -> None:
    program = compile_profile(profile(allow("read", "not_a_call_yet")))
    assert run(program, READ) == ALLOW


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (profile(defaultAction="ALLOW"), "defaultAction: unknown action 'ALLOW'"),
        ({}, "defaultAction: unknown action None"),
        (profile(defaultAction="SCMP_ACT_NOTIFY"), "cannot be the default"),
        (profile(defaultErrnoRet=-1), "defaultErrnoRet: -1"),
        (profile(architectures=["SCMP_ARCH_VAX"]), r"architectures\[0\]: unknown"),
        (profile(allow("read"), {"names": ["x"]}), r"syscalls\[1\].action: unknown action None"),
        (profile(allow()), r"syscalls\[0\].names"),
        (profile(allow("")), r"syscalls\[0\].names"),
        (profile(allow("read", args=[{"index": 6, "op": "SCMP_CMP_EQ"}])), r"args\[0\].index: 6"),
        (profile(allow("read", args=[{"index": 0, "op": "=="}])), r"args\[0\].op"),
        (profile(allow("read", args=[{"index": 0, "op": "SCMP_CMP_EQ", "value": -1}])), "value"),
        (profile({"names": ["write"], "action": "SCMP_ACT_NOTIFY"}), "write cannot be notified"),
    ],
)
def test_a_broken_profile_names_the_field(broken: dict[str, Any], message: str) -> None:
    with pytest.raises(SeccompError, match=message):
        compile_profile(broken)


def test_unknown_flags_are_refused() -> None:
    with pytest.raises(SeccompError, match="SECCOMP_FILTER_FLAG_NEW"):
        installer(b"", ["SECCOMP_FILTER_FLAG_NEW"])


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "_library", None)
    monkeypatch.setattr(seccomp, "LIBRARY", "libnowhere.so.0")
    with pytest.raises(SeccompError, match="install libseccomp2"):
        compile_profile(profile())


@pytest.fixture(scope="module")
def plain() -> bytes:
    return compile_profile(default_profile([], "x86_64"))


@pytest.fixture(scope="module")
def admin() -> bytes:
    return compile_profile(default_profile(["CAP_SYS_ADMIN"], "x86_64"))


class TestDefaultProfile:
    @pytest.mark.parametrize(
        ("number", "arguments", "verdict"),
        [
            (READ, (), ALLOW),
            (SOCKET, (1,), ALLOW),
            (SOCKET, (2,), ALLOW),
            (SOCKET, (38,), EPERM),  # AF_ALG
            (SOCKET, (39,), ALLOW),
            (SOCKET, (40,), EPERM),  # AF_VSOCK
            (SOCKET, (41,), ALLOW),
            (135, (0,), ALLOW),  # personality
            (135, (8,), ALLOW),
            (135, (0xFFFFFFFF,), ALLOW),
            (135, (0x0040000,), EPERM),  # ADDR_NO_RANDOMIZE
            (CLONE, (0x11,), ALLOW),
            (CLONE, (0x10000000,), EPERM),  # CLONE_NEWUSER
            (CLONE, (0x02000000,), EPERM),  # CLONE_NEWCGROUP
            (CLONE3, (), ENOSYS),
            (UNSHARE, (0x10000000,), EPERM),
            (161, (), EPERM),  # chroot
            (165, (), EPERM),  # mount
            (321, (), EPERM),  # bpf
            (246, (), EPERM),  # kexec_load
            (248, (), EPERM),  # add_key
            (298, (), EPERM),  # perf_event_open
            (425, (), EPERM),  # io_uring_setup
            (323, (), EPERM),  # userfaultfd
            (101, (), ALLOW),  # ptrace
            (FUTURE, (), ENOSYS),
        ],
    )
    def test_without_capabilities(
        self, plain: bytes, number: int, arguments: tuple[int, ...], verdict: int
    ) -> None:
        assert run(plain, number, *arguments) == verdict

    @pytest.mark.parametrize("number", [CLONE, CLONE3, UNSHARE, 165, 308, 321, 428, 442])
    def test_the_administrator_may_make_namespaces_and_mounts(
        self, admin: bytes, number: int
    ) -> None:
        assert run(admin, number, 0x10000000) == ALLOW

    @pytest.mark.parametrize(
        ("capability", "number"),
        [
            ("CAP_SYS_CHROOT", 161),
            ("CAP_SYS_BOOT", 169),
            ("CAP_SYS_MODULE", 175),
            ("CAP_SYS_TIME", 227),
            ("CAP_SYS_NICE", 238),
            ("CAP_SYS_PTRACE", 312),
            ("CAP_DAC_READ_SEARCH", 304),
            ("CAP_BPF", 321),
        ],
    )
    def test_a_capability_brings_its_calls(
        self, plain: bytes, capability: str, number: int
    ) -> None:
        assert run(plain, number) == EPERM
        program = compile_profile(default_profile([capability], "x86_64"))
        assert run(program, number) == ALLOW

    def test_32_bit_programs_are_filtered_too(self, plain: bytes) -> None:
        assert run(plain, 3, arch=I386) == ALLOW  # read
        assert run(plain, 102, arch=I386) == ALLOW  # socketcall
        assert run(plain, 21, arch=I386) == EPERM  # mount

    def test_arm_has_its_own_architectures_and_calls(self) -> None:
        made = default_profile([], "aarch64")
        assert made["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
        assert "cacheflush" in made["syscalls"][0]["names"]
        program = compile_profile(made)
        assert run(program, 63, arch=AARCH64) == ALLOW  # read
        assert run(program, 40, arch=AARCH64) == EPERM  # mount
        assert run(program, FUTURE, arch=AARCH64) == ENOSYS

    def test_the_same_input_gives_the_same_profile(self) -> None:
        names = ["CAP_SYS_TIME", "CAP_BPF"]
        assert default_profile(names, "x86_64") == default_profile(names[::-1], "x86_64")
