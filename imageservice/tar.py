"""The tar formats as data: v7, ustar, PAX and GNU headers. No I/O.

Sources: POSIX.1-2017 pax (ustar and pax interchange format), GNU tar manual ("Basic Tar Format",
"Storing Sparse Files"). Names stay bytes: a layer's names have no encoding.
"""

from __future__ import annotations

from typing import Final

BLOCK: Final = 512
ZERO_BLOCK: Final = bytes(BLOCK)

# A PAX or GNU long-name header of one entry; Go's archive/tar, and so every other runtime, has
# the same limit.
MAX_META = 1 << 20
# PATH_MAX with its NUL: the kernel takes no longer name in one call.
MAX_PATH = 4095
# The kernel's (uid_t) -1 means "leave it"; a larger number would wrap (CVE-2024-40635).
MAX_ID = 0xFFFFFFFE
# Extents of one sparse file; GNU tar writes 16 bytes or more for each.
MAX_SPARSE = 1 << 16
# Seconds that a signed 64-bit count of nanoseconds holds.
MAX_SECONDS = (1 << 63) // 1_000_000_000 - 1

REGULAR: Final = ord("0")
HARDLINK: Final = ord("1")
SYMLINK: Final = ord("2")
CHARACTER: Final = ord("3")
BLOCKDEV: Final = ord("4")
DIRECTORY: Final = ord("5")
FIFO: Final = ord("6")
CONTIGUOUS: Final = ord("7")
PAX: Final = ord("x")
PAX_SOLARIS: Final = ord("X")
PAX_GLOBAL: Final = ord("g")
GNU_LONGNAME: Final = ord("L")
GNU_LONGLINK: Final = ord("K")
GNU_SPARSE: Final = ord("S")

META_KINDS: Final = frozenset((PAX, PAX_SOLARIS, PAX_GLOBAL, GNU_LONGNAME, GNU_LONGLINK))
_HEADER_ONLY: Final = frozenset((HARDLINK, SYMLINK, CHARACTER, BLOCKDEV, DIRECTORY, FIFO))
_KINDS: Final = META_KINDS | _HEADER_ONLY | {REGULAR, GNU_SPARSE}

_XATTR = b"SCHILY.xattr."
_NSEC = 1_000_000_000

Extent = tuple[int, int]  # offset in the file, length; in bytes


class TarError(Exception):
    """The archive is not one that can be applied; the message says why."""


class Entry:
    """One member. `size` is the length of its data in the archive, `real_size` on disk."""

    __slots__ = (
        "atime_ns",
        "device",
        "extended",
        "gid",
        "kind",
        "linkname",
        "mode",
        "mtime_ns",
        "name",
        "real_size",
        "size",
        "sparse",
        "sparse_in_data",
        "uid",
        "xattrs",
    )

    def __init__(self, kind: int, name: bytes) -> None:
        self.kind = kind
        self.name = name
        self.linkname = b""
        self.mode = 0
        self.uid = 0
        self.gid = 0
        self.size = 0
        self.real_size = 0
        self.mtime_ns = 0
        self.atime_ns = 0
        self.device = (0, 0)
        self.xattrs: dict[str, bytes] | None = None
        self.sparse: list[Extent] | None = None
        self.extended = False  # old GNU sparse: more of the map follows the header
        self.sparse_in_data = False  # GNU sparse format 1.0: the map begins the data


def number(field: bytes) -> int:
    """Decode a numeric field: octal digits, or base-256 when the first bit is set (GNU).

    Raises TarError.
    """
    if field and field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=False)
        bits = len(field) * 8
        if field[0] & 0x40:  # two's complement
            return value - (1 << bits)
        return value - (0x80 << (bits - 8))
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if not digits.isdigit():
        raise TarError(f"{field!r} is not a number")
    try:
        return int(digits, 8)
    except ValueError:
        raise TarError(f"{field!r} is not an octal number") from None


def check_sum(block: bytes) -> None:
    """Raise TarError unless the header's checksum is right; old tars summed signed chars."""
    try:
        stored = number(block[148:156])
    except TarError:
        stored = -1
    rest = block[:148] + b" " * 8 + block[156:]
    total = sum(rest)
    if stored != total and stored != total - 256 * sum(byte > 127 for byte in rest):
        raise TarError("not a tar header: its checksum is wrong")


def cut(field: bytes) -> bytes:
    """Return the bytes before the first NUL."""
    return field.partition(b"\0")[0]


def parse_header(block: bytes) -> Entry:
    """Decode one header block, which is not all zero.

    Raises TarError for a wrong checksum, an unknown type or a number out of its range.
    """
    check_sum(block)
    kind = block[156] or REGULAR
    name = _name(block)
    if kind == CONTIGUOUS:
        kind = REGULAR
    if kind == REGULAR and name.endswith(b"/"):  # v7 had no type for directories
        kind = DIRECTORY
    if kind not in _KINDS:
        raise TarError(f"entry {name!r} has the unknown type {chr(kind)!r}")
    entry = Entry(kind, name)
    entry.linkname = cut(block[157:257])
    entry.mode = number(block[100:108]) & 0o7777
    entry.uid = number(block[108:116])
    entry.gid = number(block[116:124])
    size = 0 if kind in _HEADER_ONLY else number(block[124:136])
    if size < 0:
        raise TarError(f"entry {name!r} has a negative size")
    entry.size = entry.real_size = size
    entry.mtime_ns = _nanoseconds(number(block[136:148]))
    if kind in (CHARACTER, BLOCKDEV):
        entry.device = (number(block[329:337]), number(block[337:345]))
    if kind == GNU_SPARSE:
        entry.sparse = parse_old_sparse(block[386:482], 4)
        entry.extended = block[482] != 0
        entry.real_size = number(block[483:495])
    return entry


def _name(block: bytes) -> bytes:
    name = cut(block[:100])
    if block[257:263] != b"ustar\0":
        return name
    # star keeps its own times behind a shorter prefix.
    prefix = cut(block[345:476] if block[508:512] == b"tar\0" else block[345:500])
    return prefix + b"/" + name if prefix else name


def _nanoseconds(seconds: int) -> int:
    if not -MAX_SECONDS <= seconds <= MAX_SECONDS:
        raise TarError(f"a time of {seconds} s does not fit")
    return seconds * _NSEC


def parse_old_sparse(field: bytes, count: int) -> list[Extent]:
    """Decode up to `count` extents of GNU's old format, 24 bytes each; a zero ends the list."""
    extents: list[Extent] = []
    for start in range(0, count * 24, 24):
        raw = field[start : start + 24]
        if raw[12:24].strip(b" \0") == b"" and raw[:12].strip(b" \0") == b"":
            break
        extents.append((number(raw[:12]), number(raw[12:24])))
    return extents


def parse_pax(data: bytes) -> list[tuple[bytes, bytes]]:
    """Decode pax records `LENGTH KEY=VALUE\\n` in order.

    Raises TarError when a length does not fit its record.
    """
    records: list[tuple[bytes, bytes]] = []
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 8)
        digits = data[position:space]
        if space < 0 or not digits.isdigit():
            raise TarError("a pax record has no length")
        end = position + int(digits)
        if end > len(data) or end <= space + 1 or data[end - 1 : end] != b"\n":
            raise TarError("a pax record's length is wrong")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise TarError("a pax record has no key")
        records.append((key, value))
        position = end
    return records


def apply_pax(entry: Entry, records: list[tuple[bytes, bytes]]) -> None:
    """Let pax records override the header's fields; an empty value leaves them.

    Raises TarError for a value that cannot be.
    """
    sparse: list[int] = []
    version = [0, 0]
    for key, value in records:
        if not value:
            continue
        if key.startswith(_XATTR):
            _add_xattr(entry, key[len(_XATTR) :], value)
        elif key in (b"path", b"linkpath"):
            if b"\0" in value:
                raise TarError(f"pax {key.decode()} holds a NUL")
            if key == b"path":
                entry.name = value
            else:
                entry.linkname = value
        elif key == b"size":
            if entry.kind not in _HEADER_ONLY:
                entry.size = entry.real_size = _decimal(key, value)
        elif key == b"uid":
            entry.uid = _decimal(key, value)
        elif key == b"gid":
            entry.gid = _decimal(key, value)
        elif key == b"mtime":
            entry.mtime_ns = pax_time(value)
        elif key == b"atime":
            entry.atime_ns = pax_time(value)
        elif key.startswith(b"GNU.sparse."):
            _apply_sparse(entry, key[len(b"GNU.sparse.") :], value, sparse, version)
    _finish_sparse(entry, sparse, version, records)


def _add_xattr(entry: Entry, key: bytes, value: bytes) -> None:
    if entry.xattrs is None:
        entry.xattrs = {}
    entry.xattrs[key.decode("utf-8", "surrogateescape")] = value


def _decimal(key: bytes, value: bytes) -> int:
    if not value.isdigit() or len(value) > 20:
        raise TarError(f"pax {key.decode(errors='replace')} {value[:32]!r} is not a number")
    return int(value)


def pax_time(value: bytes) -> int:
    """Decode decimal seconds with a fraction, possibly negative; returns nanoseconds."""
    sign = -1 if value.startswith(b"-") else 1
    seconds, _, fraction = value.removeprefix(b"-").partition(b".")
    if not seconds.isdigit() or len(seconds) > 12 or (fraction and not fraction.isdigit()):
        raise TarError(f"{value[:32]!r} is not a time")
    return sign * (_nanoseconds(int(seconds)) + int(fraction[:9].ljust(9, b"0")))


def _apply_sparse(
    entry: Entry, key: bytes, value: bytes, sparse: list[int], version: list[int]
) -> None:
    if key == b"name":
        entry.name = value
    elif key in (b"realsize", b"size"):
        entry.real_size = _decimal(key, value)
    elif key == b"major":
        version[0] = _decimal(key, value)
    elif key == b"minor":
        version[1] = _decimal(key, value)
    elif key in (b"offset", b"numbytes"):  # format 0.0: pairs, in order
        sparse.append(_decimal(key, value))
    elif key == b"map":  # format 0.1: a comma-separated list
        sparse.extend(_decimal(key, part) for part in value.split(b","))
    if len(sparse) > 2 * MAX_SPARSE:
        raise TarError(f"a sparse file has more than {MAX_SPARSE} extents")


def _finish_sparse(
    entry: Entry, sparse: list[int], version: list[int], records: list[tuple[bytes, bytes]]
) -> None:
    if version == [1, 0]:
        entry.sparse_in_data = True
        entry.real_size = next(
            (_decimal(k, v) for k, v in records if k == b"GNU.sparse.realsize"), entry.real_size
        )
    elif sparse:
        if len(sparse) % 2:
            raise TarError("a sparse map has an offset without a length")
        entry.sparse = list(zip(sparse[::2], sparse[1::2], strict=True))
        # The record "size" may have come after the real one.
        entry.real_size = next(
            (
                _decimal(k, v)
                for k, v in records
                if k in (b"GNU.sparse.size", b"GNU.sparse.realsize")
            ),
            entry.real_size,
        )


def check_entry(entry: Entry) -> None:
    """Raise TarError for what no kernel call may be asked to do."""
    if len(entry.name) > MAX_PATH or len(entry.linkname) > MAX_PATH:
        raise TarError(f"entry {entry.name[:64]!r}… has a path over {MAX_PATH} bytes")
    if not (0 <= entry.uid <= MAX_ID and 0 <= entry.gid <= MAX_ID):
        raise TarError(f"entry {entry.name!r} has the impossible owner {entry.uid}:{entry.gid}")
    if entry.sparse is not None:
        check_sparse(entry, entry.size)


def check_sparse(entry: Entry, available: int) -> None:
    """Raise TarError unless the extents are in order, inside the file, and have their data."""
    end = total = 0
    for offset, length in entry.sparse or ():
        if offset < end or length < 0:
            raise TarError(f"entry {entry.name!r} has a sparse map out of order")
        end = offset + length
        total += length
    if end > entry.real_size or total != available:
        raise TarError(f"entry {entry.name!r} has a sparse map that does not fit its data")


def clean_path(name: bytes) -> bytes:
    """Return the name relative to the layer's root, without '.', '//' or a leading '/'.

    Raises TarError for a '..' anywhere: no tool that makes layers writes one.
    """
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise TarError(f"entry {name!r} leaves the layer with '..'")
    return b"/".join(parts)
