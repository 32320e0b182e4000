"""Messages out of messages: changes of fields, so that what comes out can be parsed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from tests.fuzz.mutation import mutated

# What the checks of a request turn on.
_TEXTS = (
    "", "/", "/a", "/a/b", "/a/", "//a", "/a/./b", "/a/../b", "..", "../a", "a/b", "\0", "/\0",
    "a\nb", "=", "A=B", "HOME", "TERM", "/dev", "/dev/shm", "/dev/null", "/proc", "/sys",
    "/sys/fs/cgroup", "/etc/hosts", "/volume", "ALL", "all", "CAP_SYS_ADMIN", "sys_admin",
    "NET_RAW", "CAP_", "rwm", "r", "unconfined", "runtime/default", "docker/default", "localhost/",
    "localhost//profile", "localhost/profile", "0", "-1", "0-1", "0-", "max", "2MB", "1GB",
    "memory.high", "cpu.max", "web", "root", "nobody", "0:0", "noexec", "nosuid", "exec",
    "lowerdir+=/", "s0:c1,c2", "net.ipv4.x", "é", "\U0001f600", "x" * 300, "/" + "y/" * 2100,
)  # fmt: skip
_NUMBERS = (0, 1, 2, 5, 99, 1000, 1001, 65_535, 65_536, 1 << 20, (1 << 31) - 1, 1 << 31,
            (1 << 32) - 1, 1 << 32, 1 << 62, (1 << 63) - 1, (1 << 64) - 1)  # fmt: skip
_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (32, True),
    FieldDescriptor.CPPTYPE_INT64: (64, True),
    FieldDescriptor.CPPTYPE_UINT32: (32, False),
    FieldDescriptor.CPPTYPE_UINT64: (64, False),
}
_BYTES_SHARE = 0.1  # of inputs whose bytes are changed as well


def mutated_message(kind: type[Message], source: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return a seed, a serialised `kind`, with some changes; a few of these do not parse."""
    data = source.choice(seeds)
    try:
        message = kind.FromString(data)
    except DecodeError:
        message = kind()
    for _ in range(source.randint(1, 6)):
        _change(source, message)
    data = message.SerializeToString(deterministic=True)
    if source.random() < _BYTES_SHARE:
        data = mutated(source, [data, *seeds], blocks=False)
    return data


def _change(source: random.Random, message: Any) -> None:
    field = source.choice(message.DESCRIPTOR.fields)
    value = getattr(message, field.name)
    if source.random() < 0.1:
        message.ClearField(field.name)
    elif field.is_repeated:
        _change_several(source, field, value)
    elif field.message_type is not None:
        value.SetInParent()
        if field.message_type.fields:
            _change(source, value)
    else:
        setattr(message, field.name, _scalar(source, field))


def _change_several(source: random.Random, field: FieldDescriptor, values: Any) -> None:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        key, value = (_scalar(source, kind.fields_by_name[name]) for name in ("key", "value"))
        values[key] = value
    elif values and source.random() < 0.2:
        del values[source.randrange(len(values))]
    elif kind is None:
        values.append(_scalar(source, field))
    else:
        new = not values or source.random() < 0.5
        _change(source, values.add() if new else source.choice(values))


def _scalar(source: random.Random, field: FieldDescriptor) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            text = source.choice(_TEXTS)
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_BOOL:
            return source.random() < 0.5
        case FieldDescriptor.CPPTYPE_ENUM:
            assert field.enum_type is not None
            return source.choice([*field.enum_type.values_by_number, 99])
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return float(source.choice(_NUMBERS))
        case kind:
            return _number(source, *_BITS[kind])


def _number(source: random.Random, bits: int, signed: bool) -> int:
    """Return one of the numbers that fits, at times negative where there are such."""
    most = (1 << (bits - signed)) - 1
    number = min(source.choice(_NUMBERS), most)
    return -number if signed and source.random() < 0.3 else number
