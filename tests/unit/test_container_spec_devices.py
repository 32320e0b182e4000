"""Devices of a request, looked up on the host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from api.cri import api_pb2
from api.errors import InvalidArgumentError
from criserver.host_devices import host_devices, requested


def device(host: str, container: str = "", permissions: str = "rwm") -> api_pb2.Device:
    return api_pb2.Device(host_path=host, container_path=container, permissions=permissions)


def test_a_device_with_its_numbers_and_the_wanted_path_and_access() -> None:
    (found,) = requested([device("/dev/zero", "/dev/nothing", "r")])
    assert (found.path, found.kind, found.major, found.minor) == ("/dev/nothing", "c", 1, 5)
    assert found.node()["fileMode"] == 0o666
    assert found.rule() == {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "r"}


def test_a_link_is_followed_and_keeps_its_name(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    (found,) = requested([device(str(link))])
    assert (found.path, found.minor) == (str(link), 3)


def test_privileged_gets_the_nodes_below_dev_without_terminals_of_others() -> None:
    paths = {each.path for each in host_devices()}
    assert {"/dev/null", "/dev/zero", "/dev/random"} <= paths
    assert not any(path.startswith("/dev/pts/") for path in paths)
    assert all(os.path.exists(path) for path in paths)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (device("/dev/nonexistent"), r"devices\[0\].host_path: '/dev/nonexistent'"),
        (device("/etc/passwd"), "not a device"),
        (device("dev/null"), "absolute"),
        (device("/dev/null", "null"), "absolute"),
        (device("/dev/null", permissions=""), "permissions"),
        (device("/dev/null", permissions="rx"), "permissions: 'rx'"),
        (device("/dev/nu\0ll"), "NUL"),
        (device("/dev/nu\0ll", "/dev/null"), "host_path"),
    ],
)
def test_what_is_no_device_is_refused(wanted: api_pb2.Device, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        requested([wanted])
