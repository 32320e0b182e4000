"""The pod's init, instruction by instruction."""

from __future__ import annotations

import fcntl
import os
import struct

import pytest

from podsandbox import pod_init

HEADERS = 64 + 2 * 56


def aarch64(word: int) -> str:
    """Decode what the program uses (Arm ARM, C6.2: MOVZ, SVC, B)."""
    if word & 0xFFE00000 == 0xD2800000:
        return f"mov x{word & 31}, #{word >> 5 & 0xFFFF}"
    if word & 0xFFE0001F == 0xD4000001:
        return f"svc #{word >> 5 & 0xFFFF}"
    if word & 0xFC000000 == 0x14000000:
        offset = word & 0x3FFFFFF
        return f"b {offset - (1 << 26) if offset >> 25 else offset}"
    return f"? {word:08x}"


def test_aarch64_waits_in_ppoll_for_ever() -> None:
    code = pod_init.elf("aarch64")[HEADERS:]
    assert [aarch64(word) for (word,) in struct.iter_unpack("<I", code)] == [
        *(f"mov x{n}, #0" for n in range(5)),
        "mov x8, #73",
        "svc #0",
        "b -7",
    ]


def test_x86_64_waits_in_pause_for_ever() -> None:
    code = pod_init.elf("x86_64")[HEADERS:]
    assert code[0] == 0xB8 and struct.unpack_from("<I", code, 1) == (34,)  # mov eax, pause
    assert code[5:7] == b"\x0f\x05"  # syscall
    assert code[7] == 0xEB  # jmp, relative to the instruction after it
    assert len(code) + struct.unpack_from("<b", code, 8)[0] == 0


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 62), ("aarch64", 183)])
def test_it_is_a_static_executable_without_a_writable_segment(machine: str, number: int) -> None:
    image = pod_init.elf(machine)
    fields = struct.unpack_from("<16sHHIQQQIHHHHHH", image)
    assert fields[0][:7] == b"\x7fELF\x02\x01\x01"
    assert (fields[1], fields[2]) == (2, number)
    entry, offset, count = fields[4], fields[5], fields[10]
    segments = [struct.unpack_from("<IIQQQQQQ", image, offset + 56 * n) for n in range(count)]
    (load,) = [segment for segment in segments if segment[0] == 1]
    assert load[1] == 5  # readable, executable
    assert entry == load[3] + HEADERS
    assert load[5] == load[6] == len(image)
    (stack,) = [segment for segment in segments if segment[0] == 0x6474E551]
    assert stack[1] == 6  # readable, writable, not executable


def test_other_machines_have_none() -> None:
    with pytest.raises(KeyError):
        pod_init.elf("riscv64")


def test_the_memfd_is_sealed_and_can_only_be_executed() -> None:
    fd = pod_init.sealed("x86_64")
    try:
        assert os.fstat(fd).st_mode & 0o777 == 0o111
        assert not os.get_inheritable(fd)
        every = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == every
        with pytest.raises(PermissionError):
            os.write(fd, b"x")
    finally:
        os.close(fd)
