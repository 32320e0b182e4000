"""Device rules: the allowlist, its v1 lines, and its v2 program run by a small interpreter."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from runtimeshim.linux.cgroups import device_filter, devices
from runtimeshim.linux.cgroups.device_filter import ACCESS_BITS, DEVICE_TYPES, program
from runtimeshim.linux.cgroups.devices import ACCESS, ANY, Rule
from runtimeshim.linux.cgroups.files import CgroupError

DENY_ALL = {"allow": False, "access": "rwm"}
ALLOW_ALL = {"allow": True, "access": "rwm"}
FUSE = {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rwm"}


def run(code: bytes, kind: str, access: str, major: int, minor: int) -> bool:
    """Interpret the instructions that the generator uses, on one access."""
    bits = sum(ACCESS_BITS[letter] for letter in access)
    context = struct.pack("=III", bits << 16 | DEVICE_TYPES[kind], major, minor)
    registers = [0] * 10
    counter = 0
    while True:
        operation, both, offset, value = struct.unpack_from("<BBhI", code, counter * 8)
        target, source = both & 15, both >> 4
        counter += 1
        match operation:
            case 0x61:
                registers[target] = struct.unpack_from("=I", context, offset)[0]
            case 0x54:
                registers[target] &= value
            case 0x74:
                registers[target] >>= value
            case 0xB4:
                registers[target] = value
            case 0xBC:
                registers[target] = registers[source]
            case 0x56:
                counter += offset if registers[target] != value else 0
            case 0x5E:
                counter += offset if registers[target] != registers[source] else 0
            case 0x16:
                counter += offset if registers[target] == value else 0
            case 0x95:
                return bool(registers[0])
            case _:
                raise AssertionError(f"unknown instruction {operation:#x}")


@pytest.mark.parametrize(
    ("rules", "kind", "access", "device", "allowed"),
    [
        ([DENY_ALL], "c", "rw", (1, 3), True),
        ([DENY_ALL], "c", "rw", (1, 4), False),
        ([], "c", "rw", (1, 4), False),
        ([DENY_ALL], "c", "m", (7, 7), True),
        ([DENY_ALL], "b", "m", (7, 7), True),
        ([DENY_ALL], "b", "rm", (7, 7), False),
        ([DENY_ALL], "b", "r", (8, 0), False),
        ([DENY_ALL], "c", "rwm", (136, 12), True),
        ([DENY_ALL], "c", "w", (10, 229), False),
        ([DENY_ALL, FUSE], "c", "w", (10, 229), True),
        ([DENY_ALL, FUSE], "b", "w", (10, 229), False),
        ([FUSE, DENY_ALL], "c", "w", (10, 229), False),
        ([DENY_ALL, {**FUSE, "access": "r"}], "c", "r", (10, 229), True),
        ([DENY_ALL, {**FUSE, "access": "r"}], "c", "rw", (10, 229), False),
        ([ALLOW_ALL], "b", "rwm", (8, 0), True),
        ([ALLOW_ALL, {**FUSE, "allow": False, "access": "w"}], "c", "rw", (10, 229), False),
        ([ALLOW_ALL, {**FUSE, "allow": False, "access": "w"}], "c", "r", (10, 229), True),
        ([ALLOW_ALL, {"allow": False, "type": "b", "major": 8}], "b", "r", (8, 17), False),
    ],
)
def test_the_last_rule_that_matches_decides(
    rules: list[dict[str, object]],
    kind: str,
    access: str,
    device: tuple[int, int],
    allowed: bool,
) -> None:
    assert run(program(devices.allowlist(rules)), kind, access, *device) is allowed


def test_no_rule_at_all_allows_nothing() -> None:
    assert run(program([]), "c", "r", 1, 3) is False


def test_v1_denies_all_first_and_shares_an_open_file_per_run(tmp_path: Path) -> None:
    for name in ("devices.allow", "devices.deny"):
        (tmp_path / name).touch()
    devices.apply_v1(str(tmp_path), devices.allowlist([DENY_ALL, FUSE]))
    assert (tmp_path / "devices.deny").read_text() == "a"
    assert (tmp_path / "devices.allow").read_text().startswith("c 10:229 rwmc *:* m")


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (Rule(True, "a", ANY, ANY, ACCESS), "a"),
        (Rule(True, "c", 1, 3, "rw"), "c 1:3 rw"),
        (Rule(True, "b", 8, ANY, "r"), "b 8:* r"),
    ],
)
def test_line(rule: Rule, line: str) -> None:
    assert rule.line() == line


def test_an_unbuffered_character_device_is_one() -> None:
    assert devices.parse([{"allow": True, "type": "u", "major": 1, "minor": 2}])[0].kind == "c"


@pytest.mark.parametrize("interrupted", [0, 1, 4])
def test_a_program_is_loaded_although_signals_come(monkeypatch, interrupted):
    answers = [errno.EAGAIN] * interrupted + [0]
    monkeypatch.setattr(device_filter, "_bpf", answering(answers))
    assert device_filter._load(program(())) == 7
    assert answers == []


@pytest.mark.parametrize("answers", [[errno.EAGAIN] * 5, [errno.EINVAL]])
def test_what_the_verifier_refuses_is_told_with_its_words(monkeypatch, answers):
    code = answers[-1]
    monkeypatch.setattr(device_filter, "_bpf", answering(answers))
    with pytest.raises(CgroupError, match="the verifier says") as raised:
        device_filter._load(program(()))
    assert raised.value.errno == code
    assert answers == []


def answering(answers):
    """A bpf(2) that fails with these errors, one after another, and succeeds with 0."""

    def bpf(*_):
        if code := answers.pop(0):
            raise CgroupError(code, os.strerror(code))
        return 7, b""

    return bpf
