"""D-Bus messages, against the examples of the specification and by round trip."""

from __future__ import annotations

import struct

import pytest

from runtimeshim.linux import dbus
from runtimeshim.linux.dbus import Variant


@pytest.mark.parametrize(
    ("signature", "values", "wire"),
    [
        ("y", (5,), b"\x05"),
        ("yu", (1, 2), b"\x01\0\0\0\x02\0\0\0"),
        ("b", (True,), b"\x01\0\0\0"),
        ("s", ("foo",), b"\x03\0\0\0foo\0"),
        ("g", ("a{sv}",), b"\x05a{sv}\0"),
        ("at", ([1],), b"\x08\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0"),
        ("ay", (b"\x01\x02",), b"\x02\0\0\0\x01\x02"),
        ("v", (Variant("u", 7),), b"\x01u\0\0\x07\0\0\0"),
        ("a(sv)", ([],), bytes(8)),  # padding of an empty array is not part of its length
    ],
)
def test_the_wire_form(signature: str, values: tuple[object, ...], wire: bytes) -> None:
    assert dbus.marshal(signature, values) == wire


def test_signatures_are_split_into_complete_types() -> None:
    assert dbus.types("ssa(sv)a(sa(sv))a{sv}u") == ["s", "s", "a(sv)", "a(sa(sv))", "a{sv}", "u"]
    with pytest.raises(ValueError, match="not closed"):
        dbus.types("(s")


def test_what_is_marshalled_is_read_back() -> None:
    values = ("unit", [("A", Variant("t", 9)), ("B", Variant("as", ["x", "yy"]))], (-4, "end"))
    found, end = dbus.unmarshal("sa(sv)(is)", dbus.marshal("sa(sv)(is)", values))
    assert found == ("unit", [("A", 9), ("B", ["x", "yy"])], (-4, "end"))
    assert end == len(dbus.marshal("sa(sv)(is)", values))


def test_a_message_is_read_back() -> None:
    fields = {dbus.PATH: "/a", dbus.MEMBER: "Go", dbus.SIGNATURE: "su", dbus.REPLY_SERIAL: 3}
    data = dbus.encode(dbus.RETURN, 9, fields, dbus.marshal("su", ("x", 4)))
    assert dbus.size_of(data[:16]) == len(data)
    assert dbus.decode(data) == dbus.Message(dbus.RETURN, fields, ("x", 4))


def test_a_message_too_large_or_of_another_byte_order_is_refused() -> None:
    with pytest.raises(ValueError, match="byte order"):
        dbus.size_of(b"B" + bytes(15))
    with pytest.raises(ValueError, match="bytes"):
        dbus.size_of(struct.pack("<BBBBIII", ord("l"), 1, 0, 1, 1 << 31, 1, 0))
