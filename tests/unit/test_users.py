"""Users and groups of a container, as tables."""

from __future__ import annotations

import pytest

from api.cri import api_pb2
from api.errors import InvalidArgumentError
from criserver.users import ResolvedUser, resolve_user

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# a comment
broken
alice:x:1000:1001:Alice:/home/alice:/bin/sh
bob:x:1002:1003::relative:/bin/sh
minimal:x:1004:1005
huge:x:4294967296:0::/:/bin/sh
minus:x:-1:0::/:/bin/sh
word:x:zero:0::/:/bin/sh
:x:7:7::/:/bin/sh
nul\0:x:8:8::/:/bin/sh
alice:x:2000:2000:second:/home/second:/bin/sh
"""
GROUP = b"""root:x:0:root
audio:x:29:alice,bob
video:x:44:,alice
alice:x:1001:alice
wheel:x:10:root
nogid:x::alice
huge:x:2147483648:alice
short:x:77
"""


def context(**fields: object) -> api_pb2.LinuxContainerSecurityContext:
    for name in ("run_as_user", "run_as_group"):
        if name in fields:
            fields[name] = api_pb2.Int64Value(value=fields[name])  # type: ignore[arg-type]
    return api_pb2.LinuxContainerSecurityContext(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "image", "expected"),
    [
        ({}, "", ResolvedUser(0, 0, (0, 10), "/root")),
        ({}, "0", ResolvedUser(0, 0, (0, 10), "/root")),
        ({}, "alice", ResolvedUser(1000, 1001, (29, 44, 1001), "/home/alice")),
        ({}, "1000", ResolvedUser(1000, 1001, (29, 44, 1001), "/home/alice")),
        ({}, "alice:video", ResolvedUser(1000, 44, (29, 44), "/home/alice")),
        ({}, "alice:5", ResolvedUser(1000, 5, (5, 29, 44), "/home/alice")),
        ({}, "1000:wheel", ResolvedUser(1000, 10, (10, 29, 44), "/home/alice")),
        ({}, "12345", ResolvedUser(12345, 0, (0,), "/")),
        ({}, "12345:678", ResolvedUser(12345, 678, (678,), "/")),
        ({}, "bob", ResolvedUser(1002, 1003, (29, 1003), "/")),
        ({}, "minimal:short", ResolvedUser(1004, 77, (77,), "/")),
        ({"run_as_user": 0}, "alice", ResolvedUser(0, 0, (0, 10), "/root")),
        ({"run_as_user": 1000}, "0:0", ResolvedUser(1000, 1001, (29, 44, 1001), "/home/alice")),
        (
            {"run_as_user": 1000, "run_as_group": 0},
            "",
            ResolvedUser(1000, 0, (0, 29, 44), "/home/alice"),
        ),
        ({"run_as_username": "bob"}, "alice", ResolvedUser(1002, 1003, (29, 1003), "/")),
        (
            {"run_as_username": "bob", "run_as_user": 7},
            "",
            ResolvedUser(1002, 1003, (29, 1003), "/"),
        ),
        ({"run_as_username": "1000"}, "", ResolvedUser(1000, 1001, (29, 44, 1001), "/home/alice")),
        (
            {"run_as_user": 1000, "supplemental_groups": [7, 44, 7]},
            "",
            ResolvedUser(1000, 1001, (7, 29, 44, 1001), "/home/alice"),
        ),
        (
            {
                "run_as_user": 1000,
                "supplemental_groups": [7],
                "supplemental_groups_policy": api_pb2.Strict,
            },
            "",
            ResolvedUser(1000, 1001, (7, 1001), "/home/alice"),
        ),
        ({"run_as_user": 2147483647}, "", ResolvedUser(2147483647, 0, (0,), "/")),
    ],
)
def test_who_it_runs_as(fields: dict[str, object], image: str, expected: ResolvedUser) -> None:
    assert resolve_user(context(**fields), image, PASSWD, GROUP) == expected


@pytest.mark.parametrize(
    ("fields", "image", "message"),
    [
        ({"run_as_user": -1}, "", "run_as_user: id -1 is not between"),
        ({"run_as_user": 1 << 31}, "", "run_as_user: id 2147483648"),
        ({"run_as_user": (1 << 32) - 1}, "", "run_as_user: id 4294967295"),
        ({"run_as_user": 1 << 32}, "", "run_as_user: id 4294967296"),
        ({"run_as_user": 1, "run_as_group": -1}, "", "group: id -1"),
        ({"run_as_user": 1, "run_as_group": 1 << 32}, "", "group: id 4294967296"),
        ({"run_as_group": 5}, "alice", "run_as_group: needs run_as_user"),
        ({"supplemental_groups": [3, 1 << 31]}, "", r"supplemental_groups\[1\]"),
        ({"supplemental_groups": [-1]}, "", r"supplemental_groups\[0\]"),
        ({"supplemental_groups_policy": 9}, "", "supplemental_groups_policy: unknown value 9"),
        ({"run_as_username": "carol"}, "", "run_as_username: no user 'carol'"),
        ({}, "carol", "image user: no user 'carol'"),
        ({}, "alice:carols", "image user: no group 'carols'"),
        ({}, "4294967296", "image user: id 4294967296"),
        ({}, "+4294967296", "image user: id 4294967296"),
        ({}, "-1", "image user: id -1"),
        ({}, "0:4294967296", "group: id 4294967296"),
        ({}, "99999999999999999999999", "image user: id"),
        ({}, "huge", "no user 'huge'"),
        ({}, "minus", "no user 'minus'"),
        ({}, "word", "no user 'word'"),
        ({}, "0:huge", "no group 'huge'"),
        ({}, "0:nogid", "no group 'nogid'"),
        ({}, "alice:", "not of the form"),
        ({}, ":5", "not of the form"),
        ({}, "a:b:c", "not of the form"),
    ],
)
def test_what_is_refused(fields: dict[str, object], image: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        resolve_user(context(**fields), image, PASSWD, GROUP)


def test_an_image_without_the_files_runs_by_number() -> None:
    assert resolve_user(context(), "", b"", b"") == ResolvedUser(0, 0, (0,), "/")
    with pytest.raises(InvalidArgumentError, match="no user 'root'"):
        resolve_user(context(), "root", b"", b"")


def test_names_in_any_encoding_do_no_harm() -> None:
    passwd = b"caf\xe9:x:5:6::/home:/bin/sh\n" + PASSWD
    assert resolve_user(context(), "alice", passwd, GROUP).uid == 1000
