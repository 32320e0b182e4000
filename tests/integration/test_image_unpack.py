"""Layers on disk: everything a tar can say, nothing outside, and the same tree as umoci's."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from api.errors import ImagePullError
from runtimeshim.client import WorkerError
from runtimeshim.linux import mounts
from tests.integration import images
from tests.integration.image_fixtures import Images, tree
from tests.integration.images import entry
from tests.integration.registry import Registry

pytestmark = pytest.mark.integration

Member = tuple[tarfile.TarInfo, bytes]
CAPABILITY = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"  # cap_net_bind_service+ep


async def unpack(service: Images, directory: Path, *members: Member, **args: int) -> Path:
    """Unpack a layer by the worker into an empty directory."""
    return await unpack_tar(service, directory, images.layer(*members).tar, **args)


async def unpack_tar(service: Images, directory: Path, data: bytes, **args: int) -> Path:
    target = directory / "unpacked"
    target.mkdir()
    source = directory / "layer"
    source.write_bytes(data)
    fds = [os.open(source, os.O_RDONLY), os.open(target, os.O_RDONLY)]
    try:
        answer, more = await service.spawner.run_worker("unpack_layer", args, fds, timeout=60)
        assert answer["diff_id"] == images.digest(data)
        for fd in more:
            os.close(fd)
    finally:
        for fd in fds:
            os.close(fd)
    return target


def link(path: str, target: str) -> Member:
    return entry(path, kind=tarfile.LNKTYPE, target=target)


def device(path: str, kind: bytes, major: int, minor: int, mode: int = 0o600) -> Member:
    info, content = entry(path, kind=kind, mode=mode)
    info.devmajor, info.devminor = major, minor
    return info, content


def raw_xattr(path: str, name: str, value: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar of one entry with a binary xattr, which tarfile cannot write."""
    body = b" SCHILY.xattr." + name.encode() + b"=" + value + b"\n"
    length = len(body) + 2
    record = b"%d" % length + body
    assert len(record) == length
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    header = info.tobuf(tarfile.USTAR_FORMAT)
    described, _ = entry(path, kind=kind, mode=0o755)
    padded = record + bytes(-len(record) % 512)
    return header + padded + described.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)


def output(*command: str) -> bytes:
    """Run a program to its end; returns what it printed."""
    return subprocess.run(command, capture_output=True, check=True).stdout


# -- what a tar can say -----------------------------------------------------------------------


async def test_modes_owners_and_times_are_kept(service: Images, tmp_path: Path) -> None:
    members = [
        entry("dir", kind=tarfile.DIRTYPE, mode=0o2751, uid=7, gid=8),
        entry("dir/setuid", b"x", mode=0o4755, uid=1000, gid=1001),
        entry("dir/plain", b"y" * 300_000, mode=0o640),
        entry("dir/sub", kind=tarfile.DIRTYPE, mode=0o1777),
        entry("big", b"", uid=3_000_000_000, gid=4_294_967_294),
    ]
    for number, (info, _) in enumerate(members):
        info.mtime = 1_000_000_000 + number
        info.pax_headers = {"mtime": f"{info.mtime}.25"}
    root = await unpack(service, tmp_path, *members)
    found = {
        info.name: (stat.S_IMODE(s.st_mode), s.st_uid, s.st_gid, s.st_mtime_ns)
        for info, _ in members
        for s in [(root / info.name).stat()]
    }
    assert found == {
        info.name: (info.mode, info.uid, info.gid, int(info.mtime) * 10**9 + 250_000_000)
        for info, _ in members
    }
    assert (root / "dir/plain").read_bytes() == b"y" * 300_000


async def test_every_kind_of_file_is_made(service: Images, tmp_path: Path) -> None:
    root = await unpack(
        service,
        tmp_path,
        entry("file", b"x"),
        link("hard", "file"),
        images.symlink("soft", "/etc/passwd"),
        link("hard to soft", "soft"),
        device("null", tarfile.CHRTYPE, 1, 3, 0o666),
        device("disk", tarfile.BLKTYPE, 259, 70_000),
        entry("fifo", kind=tarfile.FIFOTYPE, mode=0o620, uid=5),
        entry("n" * 255, b"long"),
        entry("/".join(["d" * 100] * 30), b"deep"),
    )
    assert (root / "hard").stat().st_ino == (root / "file").stat().st_ino
    assert os.readlink(root / "soft") == os.readlink(root / "hard to soft") == "/etc/passwd"
    null, disk, fifo = (os.lstat(root / name) for name in ("null", "disk", "fifo"))
    assert stat.S_ISCHR(null.st_mode)
    assert null.st_rdev == os.makedev(1, 3)
    assert stat.S_IMODE(null.st_mode) == 0o666
    assert stat.S_ISBLK(disk.st_mode)
    assert disk.st_rdev == os.makedev(259, 70_000)
    assert stat.S_ISFIFO(fifo.st_mode)
    assert (stat.S_IMODE(fifo.st_mode), fifo.st_uid) == (0o620, 5)
    assert (root / ("n" * 255)).read_bytes() == b"long"
    assert (root / "/".join(["d" * 100] * 30)).read_bytes() == b"deep"


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("user.test", b"a=b\n\0\xff", tarfile.REGTYPE),
        ("security.capability", CAPABILITY, tarfile.REGTYPE),
        ("user.test", b"on a directory", tarfile.DIRTYPE),
    ],
)
async def test_xattrs_are_kept(
    service: Images, tmp_path: Path, name: str, value: bytes, kind: bytes
) -> None:
    root = await unpack_tar(service, tmp_path, raw_xattr("target", name, value, kind))
    assert os.getxattr(root / "target", name) == value


async def test_a_security_xattr_of_a_symlink_is_set_on_the_link(
    service: Images, tmp_path: Path
) -> None:
    member = entry(
        "soft", kind=tarfile.SYMTYPE, target="nowhere", xattrs={"security.test": "value"}
    )
    root = await unpack(service, tmp_path, member)
    assert os.getxattr(root / "soft", "security.test", follow_symlinks=False) == b"value"


async def test_an_image_cannot_speak_to_overlayfs(service: Images, tmp_path: Path) -> None:
    xattrs = {"trusted.overlay.redirect": "/etc", "trusted.overlay.opaque": "y"}
    root = await unpack(service, tmp_path, entry("dir", kind=tarfile.DIRTYPE, xattrs=xattrs))
    assert os.listxattr(root / "dir") == []


async def test_a_later_entry_replaces_an_earlier_one(service: Images, tmp_path: Path) -> None:
    root = await unpack(
        service,
        tmp_path,
        entry("file", b"old"),
        entry("file", b"new"),
        images.directory("dir"),
        entry("dir/below", b"x"),
        entry("dir", b"now a file"),
        images.symlink("soft", "file"),
        entry("soft", b"not through the link"),
        entry("f", b"x"),
        images.directory("f"),
        entry("f/g", b"y"),
        images.directory("kept", 0o700),
        entry("kept/below", b"z"),
        images.directory("kept", 0o755),
    )
    assert (root / "file").read_bytes() == b"new"
    assert (root / "dir").read_bytes() == b"now a file"
    assert (root / "soft").read_bytes() == b"not through the link"
    assert (root / "f/g").read_bytes() == b"y"
    assert (root / "kept/below").read_bytes() == b"z"
    assert stat.S_IMODE((root / "kept").stat().st_mode) == 0o755


async def test_default_acls_and_group_bits_do_not_spread(service: Images, tmp_path: Path) -> None:
    root = await unpack(
        service,
        tmp_path,
        entry("shared", kind=tarfile.DIRTYPE, mode=0o2770, gid=50),
        entry("shared/file", b"x", mode=0o644),
        entry("shared/sub", kind=tarfile.DIRTYPE, mode=0o755),
    )
    assert (root / "shared").stat().st_gid == 50
    assert (root / "shared/file").stat().st_gid == 0
    sub = (root / "shared/sub").stat()
    assert (sub.st_gid, stat.S_IMODE(sub.st_mode)) == (0, 0o755)


@pytest.mark.parametrize("format", ["gnu", "0.0", "0.1", "1.0"])
async def test_sparse_files_stay_sparse(service: Images, tmp_path: Path, format: str) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for number in range(10):
            file.seek(number * 10_000_000)
            file.write(os.urandom(5000))
        file.truncate(100_000_000)
    pax = ("--format=pax", f"--sparse-version={format}")
    options = ("--format=gnu",) if format == "gnu" else pax
    command = ("tar", "-C", str(tmp_path), "--sparse", *options, "-c", "sparse")
    data = output(*command)
    root = await unpack_tar(service, tmp_path, data)
    assert (root / "sparse").read_bytes() == path.read_bytes()
    assert (root / "sparse").stat().st_blocks * 512 < 1_000_000


# -- whiteouts --------------------------------------------------------------------------------


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: Path) -> bool:
    return "trusted.overlay.opaque" in os.listxattr(path)


async def test_whiteouts_become_overlayfs_own(service: Images, tmp_path: Path) -> None:
    root = await unpack(
        service,
        tmp_path,
        images.directory("dir"),
        entry("dir/.wh.gone"),
        entry("dir/.wh..wh.plnk"),
        images.directory("opaque"),
        entry("opaque/.wh..wh..opq"),
        entry("opaque/new", b"x"),
        entry("implied/.wh.gone"),
    )
    assert is_whiteout(root / "dir/gone")
    assert is_whiteout(root / "implied/gone")
    assert is_opaque(root / "opaque")
    assert not is_opaque(root / "dir")
    assert list(root.rglob(".wh*")) == []


@pytest.mark.parametrize("order", ["whiteout first", "whiteout last"])
async def test_a_whiteout_does_not_hide_what_its_own_layer_has(
    service: Images, tmp_path: Path, order: str
) -> None:
    """image-spec layer.md: whiteouts apply to the layers below only."""
    own = [entry("file", b"new"), images.directory("dir"), entry("dir/new", b"x")]
    whiteouts = [entry(".wh.file"), entry(".wh.dir")]
    members = whiteouts + own if order == "whiteout first" else own + whiteouts
    root = await unpack(service, tmp_path, *members)
    assert (root / "file").read_bytes() == b"new"
    assert (root / "dir/new").read_bytes() == b"x"
    assert is_opaque(root / "dir")


# -- hostile archives -------------------------------------------------------------------------


def raw(name: bytes, kind: bytes = b"0", link: bytes = b"", size: int = 0) -> bytes:
    """One header as an attacker writes it."""
    block = bytearray(512)
    for start, value in ((0, name), (100, b"0000777"), (124, b"%011o" % size), (156, kind)):
        block[start : start + len(value)] = value
    block[157 : 157 + len(link)] = link
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def evil(text: bytes = b"evil") -> bytes:
    return text + bytes(-len(text) % 512)


END = bytes(1024)
HOSTILE = {
    "dots": (raw(b"../evil", size=4) + evil() + END, r"'\.\.'"),
    "dots inside": (raw(b"a/../../evil", size=4) + evil() + END, r"'\.\.'"),
    "dots directory": (raw(b"../../evil/", b"5") + END, r"'\.\.'"),
    "write through a symlink": (
        raw(b"out", b"2", b"/tmp") + raw(b"out/evil", size=4) + evil() + END,
        "not a directory",
    ),
    "write through a relative symlink": (
        raw(b"out", b"2", b"../../..") + raw(b"out/evil", size=4) + evil() + END,
        "not a directory",
    ),
    "directory through a symlink": (
        raw(b"out", b"2", b"/tmp") + raw(b"out/evil/", b"5") + END,
        "not a directory",
    ),
    "hard link outside": (raw(b"evil", b"1", b"/etc/passwd") + END, "hard link"),
    "hard link with dots": (raw(b"evil", b"1", b"../../etc/passwd") + END, r"'\.\.'"),
    "hard link through a symlink": (
        raw(b"out", b"2", b"/etc") + raw(b"evil", b"1", b"out/passwd") + END,
        "hard link",
    ),
    "hard link to nothing": (raw(b"evil", b"1", b"absent") + END, "hard link"),
    "hard link to a directory": (
        raw(b"dir/", b"5") + raw(b"evil", b"1", b"dir") + END,
        "hard link",
    ),
    "hard link to the root": (raw(b"evil", b"1", b"/") + END, "hard link"),
    "below a file": (raw(b"file") + raw(b"file/evil") + END, "not a directory"),
    "root as a file": (raw(b"./", b"2", b"/etc") + END, "root"),
    "whiteout of nothing": (raw(b".wh.") + END, "names nothing"),
    "whiteout of the parent": (raw(b".wh...") + END, "names nothing"),
    "10 MB of extended header": (
        raw(b"pax", b"x", size=10 << 20) + bytes(10 << 20) + END,
        "extended header of 10485760 bytes is over the limit",
    ),
    "10 MB of long name": (
        raw(b"././@LongLink", b"L", size=10 << 20) + b"n" * (10 << 20) + END,
        "extended header of 10485760 bytes is over the limit",
    ),
    "a file where a directory was": (
        raw(b"dir/", b"5") + raw(b"dir/file") + raw(b"dir") + raw(b"dir/evil") + END,
        "not a directory",
    ),
    "ends early": (raw(b"file", size=1000) + b"short", "ends early"),
    "not a tar": (b"<html>" * 1000, "checksum"),
}


@pytest.mark.parametrize(("data", "reason"), HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_layer_is_refused_and_leaves_nothing(
    service: Images, registry: Registry, tmp_path: Path, data: bytes, reason: str
) -> None:
    before = tree_outside(tmp_path)
    image = images.Image((images.Layer(data),))
    digest = images.digest(image.layers[0].blob)
    with pytest.raises(ImagePullError, match=f"layer {digest} of .*/hostile:latest: .*{reason}"):
        await service.pull_of(registry, "hostile", image)
    assert service.left() == []
    assert tree_outside(tmp_path) == before


def tree_outside(directory: Path) -> list[object]:
    """Places where an escape would show."""
    places = [Path("/evil"), Path("/tmp/evil"), directory / "evil", directory / "root/evil"]
    found: list[object] = [place.exists() for place in places]
    return [*found, Path("/etc/passwd").stat().st_nlink, Path("/etc/passwd").read_bytes()]


async def test_absolute_names_are_below_the_root(service: Images, tmp_path: Path) -> None:
    data = raw(b"/evil-absolute", size=4) + evil() + raw(b"//etc/passwd", size=4) + evil() + END
    root = await unpack_tar(service, tmp_path, data)
    assert (root / "evil-absolute").read_bytes() == b"evil"
    assert (root / "etc/passwd").read_bytes() == b"evil"
    assert not Path("/evil-absolute").exists()


@pytest.mark.parametrize("whiteout", [b"out/.wh.passwd", b"out/x/.wh.y", b"out/.wh..wh..opq"])
async def test_a_whiteout_below_a_symlink_does_nothing(
    service: Images, tmp_path: Path, whiteout: bytes
) -> None:
    """umoci writes such: the link itself hides all that was below."""
    before = tree_outside(tmp_path)
    root = await unpack_tar(service, tmp_path, raw(b"out", b"2", b"/etc") + raw(whiteout) + END)
    assert [path.name for path in root.iterdir()] == ["out"]
    assert os.readlink(root / "out") == "/etc"
    assert tree_outside(tmp_path) == before


async def test_limits_end_a_bomb(service: Images, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="more than 1000000 bytes"):
        await unpack(service, tmp_path, entry("zeros", bytes(2_000_000)), max_bytes=1_000_000)


async def test_limits_end_a_crowd(service: Images, tmp_path: Path) -> None:
    crowd = [entry(f"f{number}") for number in range(11)]
    with pytest.raises(WorkerError, match="more than 10 entries"):
        await unpack(service, tmp_path, *crowd, max_entries=10)


async def test_a_full_disk_is_named(service: Images, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounts.mount("tmpfs", str(small), "tmpfs", 0, "size=1m")
    try:
        with pytest.raises(WorkerError, match="entry 'big': ") as raised:
            await unpack(service, small, entry("big", bytes(700_000)))
        assert raised.value.errno == 28
    finally:
        mounts.umount(str(small))


async def test_a_truncated_gzip_is_refused(service: Images, registry: Registry) -> None:
    whole = images.files_layer({"file": os.urandom(100_000)})
    for blob, reason in ((whole.blob[:-4], "ends early"), (whole.blob + b"x", "something else")):
        cut = images.Layer(whole.tar)
        cut.__dict__["blob"] = blob
        with pytest.raises(ImagePullError, match=reason):
            await service.pull_of(registry, "truncated", images.Image((cut,)))
        assert service.left() == []


async def test_a_truncated_zstd_is_refused(service: Images, registry: Registry) -> None:
    whole = images.Layer(images.files_layer({"file": os.urandom(100_000)}).tar, "zstd")
    for blob, reason in ((whole.blob[:-9], "diff id|early"), (whole.blob + b"garbage", "damaged")):
        cut = images.Layer(whole.tar, "zstd")
        cut.__dict__["blob"] = blob
        with pytest.raises(ImagePullError, match=reason):
            await service.pull_of(registry, "truncated-zstd", images.Image((cut,)))
        assert service.left() == []


async def test_a_million_entries_are_the_most(service: Images, registry: Registry) -> None:
    layer = images.Layer(raw(b"d/", b"5") * 1_000_001 + END)
    with pytest.raises(ImagePullError, match="crowd:latest: more than 1000000 entries"):
        await service.pull_of(registry, "crowd", images.Image((layer,)))
    assert service.left() == []


# -- the merged tree --------------------------------------------------------------------------


@contextmanager
def merged(layers: list[Path], directory: Path) -> Iterator[Path]:
    """Mount layers, given base first."""
    if len(layers) == 1:
        yield layers[0]
        return
    directory.mkdir()
    lower = ":".join(str(layer) for layer in reversed(layers))
    mounts.mount("overlay", str(directory), "overlay", mounts.MS_RDONLY, f"lowerdir={lower}")
    try:
        yield directory
    finally:
        mounts.umount(str(directory))


def layers_for_comparison() -> list[images.Layer]:
    base = images.busybox_layer()
    second = images.layer(
        images.directory("opt", 0o750),
        entry("opt/setuid", b"#!/bin/sh\n", mode=0o4755, uid=10, gid=20),
        link("opt/hard", "opt/setuid"),
        images.symlink("opt/soft", "../etc/passwd"),
        entry("opt/fifo", kind=tarfile.FIFOTYPE, mode=0o600),
        device("opt/zero", tarfile.CHRTYPE, 1, 5),
        entry("opt/with-xattr", b"x", xattrs={"user.note": "kept"}),
        entry("opt/" + "long" * 60, b"y"),
        images.directory("data"),
        entry("data/old", b"old"),
        entry("data/gone", b"gone"),
        images.directory("replaced"),
        entry("replaced/below", b"hidden"),
        entry("tmp/.keep", b""),
    )
    third = images.layer(
        images.directory("data"),
        entry("data/.wh.gone"),
        entry("data/old", b"new", mode=0o600),
        images.directory("replaced"),
        entry("replaced/.wh..wh..opq"),
        entry("replaced/above", b"shown"),
        entry("etc/.wh.group"),
        entry("root/added/deeply", b"z"),
    )
    return [base, second, third]


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_the_tree_is_the_same_as_umocis(
    service: Images, registry: Registry, tmp_path: Path, count: int
) -> None:
    image = images.Image(tuple(layers_for_comparison()[:count]))
    pulled = await service.pull_of(registry, "umoci", image)
    layout, bundle = f"{tmp_path}/layout:latest", tmp_path / "bundle"
    source = f"docker://{registry.address}/umoci:latest"
    output("skopeo", "copy", "--src-tls-verify=false", source, f"oci:{layout}")
    output("umoci", "unpack", "--image", layout, str(bundle))
    with merged(await service.layer_dirs(pulled), tmp_path / "merged") as ours:
        assert comparable(tree(ours)) == comparable(tree(bundle / "rootfs"))


def comparable(found: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """Without the times of directories that the last layer only implies."""
    for implied in {"root", "root/added"} & set(found):
        facts = found[implied]
        found[implied] = (*facts[:5], *facts[6:])
    return found


async def test_an_implied_directory_keeps_what_it_is_below(
    service: Images, registry: Registry
) -> None:
    """The upper tar names tmp/x and a/b/c only; /tmp stays 1777, /a/b stays its owner's."""
    base = images.layer(
        entry("./", kind=tarfile.DIRTYPE, mode=0o711, uid=3),
        images.directory("tmp", 0o1777),
        entry("a", kind=tarfile.DIRTYPE, mode=0o750, uid=11, gid=12),
        entry("a/b", kind=tarfile.DIRTYPE, mode=0o2700, uid=13, xattrs={"user.note": "kept"}),
    )
    middle = images.layer(entry("a/other", b""))
    top = images.layer(entry("tmp/x", b""), entry("a/b/c", b""), entry("fresh/d", b""))
    pulled = await service.pull_of(registry, "implied", images.Image((base, middle, top)))
    lowest, _, highest = await service.layer_dirs(pulled)
    assert stat.S_IMODE((highest / "tmp").stat().st_mode) == 0o1777
    a, b, fresh = ((highest / name).stat() for name in ("a", "a/b", "fresh"))
    assert (stat.S_IMODE(a.st_mode), a.st_uid, a.st_gid) == (0o750, 11, 12)
    assert (stat.S_IMODE(b.st_mode), b.st_uid) == (0o2700, 13)
    assert b.st_mtime_ns == (lowest / "a/b").stat().st_mtime_ns
    assert os.getxattr(highest / "a/b", "user.note") == b"kept"
    assert (stat.S_IMODE(fresh.st_mode), fresh.st_uid) == (0o755, 0)
    for layer in await service.layer_dirs(pulled):  # the root too
        assert (stat.S_IMODE(layer.stat().st_mode), layer.stat().st_uid) == (0o711, 3)


async def test_an_implied_directory_is_new_where_the_lower_one_is_hidden(
    service: Images, registry: Registry
) -> None:
    base = images.layer(
        images.directory("gone", 0o700),
        images.directory("out", 0o700),
        images.directory("out/in", 0o700),
    )
    middle = images.layer(
        entry(".wh.gone"), images.directory("out", 0o711), entry("out/.wh..wh..opq")
    )
    top = images.layer(entry("gone/x", b""), entry("out/in/y", b""))
    pulled = await service.pull_of(registry, "hidden", images.Image((base, middle, top)))
    *_, highest = await service.layer_dirs(pulled)
    modes = [stat.S_IMODE((highest / p).stat().st_mode) for p in ("gone", "out", "out/in")]
    assert modes == [0o755, 0o711, 0o755]


async def test_a_layer_of_nothing_is_a_layer(service: Images, registry: Registry) -> None:
    nothing = images.Layer(b"", "none")
    empty = images.layer()
    pulled = await service.pull_of(registry, "nothing", images.Image((nothing, empty)))
    assert [list(layer.iterdir()) for layer in await service.layer_dirs(pulled)] == [[], []]


async def test_an_image_without_layers_is_an_image(service: Images, registry: Registry) -> None:
    pulled = await service.pull_of(registry, "scratch", images.Image(()))
    (layer,) = await service.layer_dirs(pulled)
    assert list(layer.iterdir()) == []
    await service.remove(pulled.id)
    assert service.left() == []


async def test_tarfile_agrees_on_a_tar_of_a_real_tree(service: Images, tmp_path: Path) -> None:
    """GNU tar's output for /etc, entry by entry."""
    data = output("tar", "-C", "/", "--format=gnu", "-c", "etc")
    root = await unpack_tar(service, tmp_path, data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            status = (root / member.name).lstat()
            assert stat.S_IMODE(status.st_mode) == member.mode or member.issym()
            assert (status.st_uid, status.st_gid) == (member.uid, member.gid)
            assert int(status.st_mtime) == int(member.mtime) or member.islnk()
            if member.isfile():
                source = tar.extractfile(member)
                assert source is not None
                assert (root / member.name).read_bytes() == source.read()
