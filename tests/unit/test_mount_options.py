"""Mount options of the runtime-spec, by table."""

from __future__ import annotations

import pytest

from runtimeshim.linux import mounts as m
from runtimeshim.oci.errors import SpecError
from runtimeshim.oci.mount_options import parse

RO, NOSUID = m.MOUNT_ATTR_RDONLY, m.MOUNT_ATTR_NOSUID


@pytest.mark.parametrize(
    ("options", "set_", "clear"),
    [
        ([], 0, 0),
        (["ro"], RO, 0),
        (["ro", "rw"], 0, RO),
        (["rw", "ro"], RO, 0),
        (["nosuid", "ro"], RO | NOSUID, 0),
        (["noatime"], m.MOUNT_ATTR_NOATIME, m.MOUNT_ATTR__ATIME & ~m.MOUNT_ATTR_NOATIME),
        (["strictatime"], m.MOUNT_ATTR_STRICTATIME, m.MOUNT_ATTR__ATIME & ~0x20),
    ],
)
def test_attributes(options: list[str], set_: int, clear: int) -> None:
    parsed = parse(options, "tmpfs", "mounts[0]")
    assert parsed.set_ == set_
    assert parsed.clear & ~m.MOUNT_ATTR__ATIME == clear & ~m.MOUNT_ATTR__ATIME


def test_a_later_access_time_mode_replaces_an_earlier_one() -> None:
    parsed = parse(["noatime", "strictatime"], "tmpfs", "mounts[0]")
    assert parsed.set_ == m.MOUNT_ATTR_STRICTATIME


def test_an_r_in_front_means_everything_below() -> None:
    parsed = parse(["rbind", "rro"], "bind", "mounts[0]")
    assert (parsed.set_, parsed.set_recursive) == (0, RO)
    assert parsed.bind
    assert parsed.recursive


@pytest.mark.parametrize(
    ("options", "fstype", "bind", "recursive"),
    [(["bind"], "none", True, False), (["rbind"], "bind", True, True), ([], "bind", True, False)],
)
def test_binds(options: list[str], fstype: str, bind: bool, recursive: bool) -> None:
    parsed = parse(options, fstype, "mounts[0]")
    assert (parsed.bind, parsed.recursive) == (bind, recursive)


def test_what_is_unknown_goes_to_the_filesystem() -> None:
    parsed = parse(["mode=1777", "newinstance"], "devpts", "mounts[0]")
    assert parsed.data == (("mode", "1777"), ("newinstance", None))


def test_propagation_is_kept_in_order() -> None:
    parsed = parse(["rbind", "rprivate", "rshared"], "bind", "mounts[0]")
    assert parsed.propagation == (m.MS_PRIVATE | m.MS_REC, m.MS_SHARED | m.MS_REC)


def test_the_runtimes_own_options_do_not_reach_the_filesystem() -> None:
    assert parse(["tmpcopyup", "size=1k"], "tmpfs", "mounts[0]").data == (("size", "1k"),)
    assert parse(["tmpcopyup"], "tmpfs", "mounts[0]").copy_up
    assert parse(["rbind", "ridmap"], "bind", "mounts[0]").recursive_idmap
    assert not parse(["rbind", "idmap"], "bind", "mounts[0]").recursive_idmap


def test_only_a_tmpfs_is_copied_up_into() -> None:
    with pytest.raises(SpecError, match=r"mounts\[3\]\.options: tmpcopyup"):
        parse(["tmpcopyup"], "proc", "mounts[3]")
