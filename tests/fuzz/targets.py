"""What is fuzzed: each target takes bytes, and may raise only what its code promises to.

A target also checks what has to hold of whatever came out, so that a wrong answer is found as well
as a crash. `seeds` are inputs to begin with.
"""

from __future__ import annotations

import gzip
import io
import os
import random
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard
from google.protobuf.message import Message

from api.errors import ImagePullError, InvalidArgumentError
from imageservice import hosts, reference, signature_policy, tar
from imageservice.compression import CompressionError, decompressed
from imageservice.layer_stream import LayerStream
from imageservice.layer_tree import LayerTree
from imageservice.tar import TarError
from imageservice.tar_reader import TarReader
from tests.fuzz.messages import mutated_message
from tests.fuzz.mutation import mutated

# Of one input: bounds the time of one run, not what is accepted elsewhere.
MAX_PLAIN = 1 << 20
MAX_ENTRIES = 500


@dataclass(frozen=True)
class Target:
    """run: raises AssertionError, or anything that is not promised, for a fault.

    kind: of what message the inputs are; None, they are other bytes. covers: the source files
    whose lines tell a new input from a known one; an input that reaches a new one joins the corpus.
    """

    run: Callable[[bytes], None]
    seeds: Sequence[bytes]
    kind: type[Message] | None = None
    covers: Collection[str] = ()

    def mutated(self, source: random.Random, seeds: Sequence[bytes]) -> bytes:
        """Return one of the seeds with some changes."""
        if self.kind is not None:
            return mutated_message(self.kind, source, seeds)
        return mutated(source, seeds, blocks=self.run in (read_tar, unpack_layer))


def read_tar(data: bytes) -> None:
    """The reader alone: every entry is one that the kernel may be asked to make."""
    stream = LayerStream(iter([data]), MAX_PLAIN)
    reader = TarReader(stream, max_entries=MAX_ENTRIES)
    try:
        for entry in reader:
            assert 0 <= entry.uid <= tar.MAX_ID
            assert 0 <= entry.gid <= tar.MAX_ID
            assert 0 <= entry.mode <= 0o7777
            assert 0 <= entry.size <= entry.real_size or entry.sparse is None
            assert len(entry.name) <= tar.MAX_PATH
            try:
                path = tar.clean_path(entry.name)
            except TarError:
                continue
            assert not path.startswith(b"/")
            assert b".." not in path.split(b"/")
    except TarError:
        pass


def unpack_layer(data: bytes) -> None:
    """Decompression, reader and tree: nothing appears outside the directory."""
    home = Path(tempfile.mkdtemp(prefix="fuzz-"))
    root = home / "in/side"
    root.mkdir(parents=True)
    old = os.umask(0)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _unpack(data, fd)
        assert os.listdir(home) == ["in"]
        assert os.listdir(home / "in") == ["side"]
    finally:
        os.close(fd)
        os.umask(old)
        shutil.rmtree(home)


def _unpack(data: bytes, root: int) -> None:
    pieces = iter([data[start : start + 1000] for start in range(0, len(data), 1000)])
    stream = LayerStream(decompressed(lambda: next(pieces, b"")), MAX_PLAIN)
    tree = LayerTree(root)
    try:
        reader = TarReader(stream, max_entries=MAX_ENTRIES)
        for entry in reader:
            # No devices on the machine that fuzzes, and no files of terabytes.
            if entry.kind not in (tar.CHARACTER, tar.BLOCKDEV) and entry.real_size < MAX_PLAIN:
                tree.apply(entry, reader)
        stream.drain()
        tree.finish()
    except (TarError, CompressionError, OSError):
        pass


def parse_reference(data: bytes) -> None:
    """A reference that parses is its own normal form, and is nothing but a name."""
    text = data.decode(errors="surrogateescape")
    try:
        found = reference.parse(text)
    except InvalidArgumentError:
        return
    assert reference.parse(str(found)) == found
    assert str(found).isascii() and str(found).isprintable()
    assert bool(found.tag) != bool(found.digest)
    assert ".." not in found.path.split("/")
    assert not found.path.startswith("/")


def read_hosts(data: bytes) -> None:
    """A hosts.toml gives hosts with an http(s) base, or an error that names the file."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        path = Path(directory, "registry.test", "hosts.toml")
        path.parent.mkdir()
        path.write_bytes(data)
        try:
            found = hosts.hosts_for("registry.test", Path(directory))
        except ImagePullError as err:
            assert directory in str(err)
            return
        assert found
        for host in found:
            assert host.base.startswith(("http://", "https://"))


def read_policy(data: bytes) -> None:
    """A signature policy is rules, or an error with the prefix that refuses a pull."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        path = Path(directory, "policy.toml")
        path.write_bytes(data)
        try:
            policy = signature_policy.read(path)
        except ImagePullError as err:
            assert str(err).startswith("SignatureValidationFailed: ")
            return
        rule = policy.rule_for("registry.test/team/app")
        assert rule.require != signature_policy.SIGNATURE or rule.keys


# -- seeds ------------------------------------------------------------------------------------


def _archives() -> Iterator[bytes]:
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form, bufsize=512) as archive:
            for info in _members():
                archive.addfile(info, io.BytesIO(bytes(info.size)))
        yield buffer.getvalue()[:-8192]


def _members() -> Iterator[tarfile.TarInfo]:
    for name, kind, link in (
        ("dir", tarfile.DIRTYPE, ""),
        ("dir/file", tarfile.REGTYPE, ""),
        ("dir/hard", tarfile.LNKTYPE, "dir/file"),
        ("soft", tarfile.SYMTYPE, "../../etc"),
        ("pipe", tarfile.FIFOTYPE, ""),
        ("dir/.wh.gone", tarfile.REGTYPE, ""),
        ("dir/.wh..wh..opq", tarfile.REGTYPE, ""),
        ("n" * 60 + "/" + "m" * 90, tarfile.REGTYPE, ""),
    ):
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode, info.mtime = kind, link, 0o4755, 1.5
        info.size = 600 if kind == tarfile.REGTYPE else 0
        info.pax_headers = {"SCHILY.xattr.user.a": "b"}
        yield info


_ARCHIVES = tuple(_archives())
_SPARSE = _ARCHIVES[2].replace(b"SCHILY.xattr.user.a=b", b"GNU.sparse.map=0,300,400,300")

_HOSTS = b"""\
server = "https://registry.test"
[host."https://mirror.test/v2"]
capabilities = ["pull", "resolve"]
ca = ["ca.pem"]
client = [["a.cert", "a.key"]]
skip_verify = true
override_path = true
[host."https://mirror.test/v2".header]
x-a = ["b", "c"]
"""
_POLICY = b"""\
default = "reject"
[[rule]]
repository = "registry.test/team"
require = "signature"
keys = ["a.pub"]
identity = "any"
"""

TARGETS = {
    "tar": Target(read_tar, (*_ARCHIVES, _SPARSE)),
    "unpack": Target(
        unpack_layer,
        (
            *_ARCHIVES,
            *(gzip.compress(archive, mtime=0) for archive in _ARCHIVES),
            zstandard.ZstdCompressor().compress(_ARCHIVES[0]),
        ),
    ),
    "reference": Target(
        parse_reference,
        (
            b"busybox",
            b"docker.io/library/busybox:latest",
            b"localhost:5000/a/b_c--d@sha256:" + b"0" * 64,
            b"[::1]:5000/a:v1.2-3_4",
            b"Registry.Example/team/app:tag@sha256:" + b"f" * 64,
        ),
    ),
    "hosts": Target(read_hosts, (_HOSTS, b"")),
    "policy": Target(read_policy, (_POLICY, b"")),
}
