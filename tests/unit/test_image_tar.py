"""The tar reader: every format that tools write, and no input that it does not survive."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imageservice import tar
from imageservice.layer_stream import LayerStream
from imageservice.manifest import digest_of
from imageservice.tar import BLOCK, Entry, TarError
from imageservice.tar_reader import TarReader

LIMIT = 1 << 30


def reader(data: bytes, piece: int = 1000, **options: int) -> TarReader:
    chunks = (data[start : start + piece] for start in range(0, len(data), piece))
    return TarReader(LayerStream(iter(chunks), LIMIT), **options)


def entries(data: bytes, piece: int = 1000) -> list[tuple[Entry, bytes]]:
    opened = reader(data, piece)
    return [(entry, b"".join(bytes(part) for part in opened.data())) for entry in opened]


def archive(*members: tarfile.TarInfo, format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as out:
        for member in members:
            out.addfile(member, io.BytesIO(b"x" * member.size))
    return buffer.getvalue()


def member(name: str = "file", kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("piece", [1, 512, 1 << 20])
def test_every_kind_of_entry_is_read(format: int, piece: int) -> None:
    data = archive(
        member("dir", tarfile.DIRTYPE, mode=0o1777, mtime=1_600_000_000),
        member("dir/file", size=1500, mode=0o4755, uid=1000, gid=2000),
        member("link", tarfile.SYMTYPE, linkname="dir/file"),
        member("hard", tarfile.LNKTYPE, linkname="dir/file"),
        member("fifo", tarfile.FIFOTYPE),
        member("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("disk", tarfile.BLKTYPE, devmajor=8, devminor=0),
        format=format,
    )
    found = entries(data, piece)
    by_name = {e.name.rstrip(b"/"): (e, content) for e, content in found}
    assert by_name[b"dir"][0].kind == tar.DIRECTORY
    assert by_name[b"dir"][0].mode == 0o1777
    assert by_name[b"dir"][0].mtime_ns == 1_600_000_000 * 10**9
    file, content = by_name[b"dir/file"]
    assert (file.mode, file.uid, file.gid, content) == (0o4755, 1000, 2000, b"x" * 1500)
    assert (by_name[b"link"][0].kind, by_name[b"link"][0].linkname) == (tar.SYMLINK, b"dir/file")
    assert by_name[b"hard"][0].kind == tar.HARDLINK
    assert by_name[b"fifo"][0].kind == tar.FIFO
    assert by_name[b"null"][0].device == (1, 3)
    assert by_name[b"disk"][0].kind == tar.BLOCKDEV


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_large_numbers_are_read(format: int) -> None:
    name, target = "d/" + "n" * 300, "t" * 400
    data = archive(
        member(name, size=3, uid=5_000_000, gid=4_000_000_000),
        member("link", tarfile.SYMTYPE, linkname=target),
        format=format,
    )
    (file, content), (link, _) = entries(data)
    assert (file.name, content) == (name.encode(), b"xxx")
    assert (file.uid, file.gid) == (5_000_000, 4_000_000_000)
    assert link.linkname == target.encode()


def test_a_ustar_prefix_belongs_to_the_name() -> None:
    name = "p" * 120 + "/" + "n" * 90
    assert entries(archive(member(name), format=tarfile.USTAR_FORMAT))[0][0].name == name.encode()


def test_pax_records_override_the_header() -> None:
    info = member("short", size=5)
    info.pax_headers = {
        "path": "long/näme",
        "mtime": "1600000000.123456789",
        "atime": "1600000001.5",
        "SCHILY.xattr.user.a": "b=c",
        "comment": "ignored",
    }
    entry, content = entries(archive(info))[0]
    assert entry.name == "long/näme".encode()
    assert entry.mtime_ns == 1_600_000_000_123_456_789
    assert entry.atime_ns == 1_600_000_001_500_000_000
    assert entry.xattrs == {"user.a": b"b=c"}
    assert content == b"xxxxx"


def test_a_binary_xattr_comes_through_whole() -> None:
    value = b"\x01\0\0\2\0\n=\xff"
    record = b"SCHILY.xattr.security.capability=" + value + b"\n"
    length = len(record) + 3
    entry = Entry(tar.REGULAR, b"f")
    tar.apply_pax(entry, tar.parse_pax(b"%d %s" % (length, record)))
    assert entry.xattrs == {"security.capability": value}


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [(b"0", 0), (b"-1.5", -1_500_000_000), (b"1.1234567899", 1_123_456_789), (b"12.", 12 * 10**9)],
)
def test_pax_times(text: bytes, nanoseconds: int) -> None:
    assert tar.pax_time(text) == nanoseconds


@pytest.mark.parametrize("text", [b"", b"x", b"1e3", b"--1", b"1.-1", b"9" * 40, b"."])
def test_what_is_no_time_is_refused(text: bytes) -> None:
    with pytest.raises(TarError):
        tar.pax_time(text)


@pytest.mark.parametrize("format", ["gnu", "--pax0.0", "--pax0.1", "--pax1.0"])
@pytest.mark.parametrize("extents", [1, 7, 40])
def test_sparse_files_keep_their_holes(tmp_path: Path, format: str, extents: int) -> None:
    """GNU tar writes each of its four formats; 40 extents need continuation blocks."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for number in range(extents):
            file.seek((number * 2 + 1) * 65536)
            file.write(b"%06d" % number * 100)
        file.truncate(extents * 2 * 65536 + 70000)
    version = ["--format=pax", f"--sparse-version={format[5:]}"]
    options = ["--format=gnu"] if format == "gnu" else version
    data = subprocess.run(
        ["tar", "-C", tmp_path, "--sparse", *options, "-c", "sparse"],
        capture_output=True,
        check=True,
    ).stdout
    entry, content = entries(data)[0]
    assert entry.name == b"sparse"
    assert entry.real_size == path.stat().st_size
    assert entry.sparse is not None
    rebuilt = bytearray(entry.real_size)
    for offset, length in entry.sparse:
        rebuilt[offset : offset + length] = content[:length]
        content = content[length:]
    assert not content
    assert rebuilt == path.read_bytes()
    assert len(data) < path.stat().st_size


def header(**fields: bytes) -> bytes:
    """One header block with a right checksum; fields are given raw."""
    block = bytearray(BLOCK)
    positions = {"name": 0, "mode": 100, "uid": 108, "size": 124, "mtime": 136, "kind": 156}
    values = {"name": b"f", "mode": b"0000644", "size": b"00000000000", "kind": b"0", **fields}
    for key, value in values.items():
        block[positions[key] : positions[key] + len(value)] = value
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(records: bytes) -> bytes:
    return header(kind=b"x", size=b"%011o" % len(records)) + records + bytes(-len(records) % BLOCK)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


HOSTILE = {
    "checksum": b"x" * BLOCK,
    "negative size": header(size=b"\xff" * 12),
    "size in letters": header(size=b"hello"),
    "size with an underscore": header(size=b"0000000_1"),
    "unknown type": header(kind=b"Z"),
    "uid beyond 32 bits": header(uid=b"\x80\0\0\1\0\0\0\0"),
    "uid -1": header(uid=b"\x80\0\0\0\xff\xff\xff\xff"),
    "negative uid": header(uid=b"\xff" * 8),
    "time out of range": header(mtime=b"\x80" + b"\xff" * 11),
    "data missing": header(size=b"00000001000"),
    "header cut": header()[:100],
    "pax header of 10 MB": header(kind=b"x", size=b"%011o" % (10 << 20)) + bytes(10 << 20),
    "pax header without an entry": pax(record(b"path", b"a")),
    "pax length of 0": pax(b"0 a=b\n") + header(),
    "pax length too long": pax(b"99 a=b\n") + header(),
    "pax without equals": pax(b"5 ab\n") + header(),
    "pax without a length": pax(b"path=a\n") + header(),
    "pax path with a NUL": pax(record(b"path", b"a\0b")) + header(),
    "pax path too long": pax(record(b"path", b"a/" * 3000)) + header(),
    "pax linkpath too long": pax(record(b"linkpath", b"a" * 5000)) + header(kind=b"2"),
    "pax size in letters": pax(record(b"size", b"many")) + header(),
    "pax uid negative": pax(record(b"uid", b"-1")) + header(),
    "pax uid 2^32": pax(record(b"uid", b"4294967296")) + header(),
    "sparse map odd": pax(record(b"GNU.sparse.map", b"1,2,3")) + header(),
    "sparse map beyond the file": pax(
        record(b"GNU.sparse.map", b"0,100") + record(b"GNU.sparse.size", b"10")
    )
    + header(size=b"%011o" % 100)
    + bytes(BLOCK),
    "sparse map without data": pax(
        record(b"GNU.sparse.map", b"0,5") + record(b"GNU.sparse.size", b"10")
    )
    + header(),
    "sparse map overlapping": pax(
        record(b"GNU.sparse.map", b"0,5,3,5") + record(b"GNU.sparse.size", b"10")
    )
    + header(size=b"%011o" % 10)
    + bytes(BLOCK),
    "sparse 1.0 without a map": pax(
        record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0")
    )
    + header(),
    "many extended headers": pax(record(b"comment", b"a")) * 20 + header(),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_malformed_archive_is_an_error(data: bytes) -> None:
    with pytest.raises(TarError):
        entries(data)


def test_too_many_entries_are_an_error() -> None:
    opened = reader(header() * 11, max_entries=10)
    with pytest.raises(TarError, match="more than 10 entries"):
        list(opened)


def test_an_archive_without_its_end_marker_is_read() -> None:
    assert len(entries(header() * 2)) == 2


def test_the_digest_covers_what_follows_the_archive() -> None:
    data = archive(member(size=3)) + b"more"
    stream = LayerStream(iter([data]), LIMIT)
    assert len(list(TarReader(stream))) == 1
    stream.drain()
    assert stream.digest() == digest_of(data)


def test_a_stream_beyond_its_limit_is_an_error() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1 << 20)

    with pytest.raises(TarError, match="more than 5000000 bytes"):
        LayerStream(endless(), 5_000_000).drain()


@pytest.mark.parametrize(
    ("name", "path"),
    [(b"./a//b/.", b"a/b"), (b"/etc/passwd", b"etc/passwd"), (b"./", b""), (b"/", b"")],
)
def test_names_are_relative_to_the_layer(name: bytes, path: bytes) -> None:
    assert tar.clean_path(name) == path


@pytest.mark.parametrize("name", [b"..", b"../a", b"a/../../b", b"a/..", b"/../x"])
def test_a_name_with_two_dots_is_refused(name: bytes) -> None:
    with pytest.raises(TarError, match=r"\.\."):
        tar.clean_path(name)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=4096))
def test_any_bytes_are_entries_or_a_tar_error(data: bytes) -> None:
    try:
        entries(data)
    except TarError:
        return


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_archive_is_entries_or_a_tar_error(data: st.DataObject) -> None:
    good = bytearray(
        archive(member("a/" + "n" * 200, size=700, uid=9_000_000), member("b", tarfile.SYMTYPE))
    )
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(good) - 1))
        good[position] = data.draw(st.integers(0, 255))
        start = position - position % BLOCK  # make the checksum right, so that more is reached
        block = good[start : start + BLOCK]
        block[148:156] = b" " * 8
        good[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    try:
        entries(bytes(good))
    except TarError:
        return


@given(st.binary(min_size=1, max_size=300))
def test_any_pax_block_is_records_or_a_tar_error(data: bytes) -> None:
    try:
        records = tar.parse_pax(data)
    except TarError:
        return
    entry = Entry(tar.REGULAR, b"f")
    try:
        tar.apply_pax(entry, records)
    except TarError:
        return
    assert os.fsencode(entry.name.decode(errors="surrogateescape")) == entry.name
