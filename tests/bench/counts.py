"""What an operation asks of the kernel, counted in what strace(1) has written down of it.

Times on a busy machine say little; these counts are the same everywhere and every time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

COPYING = (
    *("read", "readv", "pread64", "preadv", "write", "writev", "pwrite64", "pwritev"),
    *("recvfrom", "recvmsg", "sendto", "sendmsg"),
    *("splice", "tee", "sendfile", "copy_file_range"),
)
MOUNTING = (
    *("mount", "umount2", "move_mount", "open_tree", "fsopen", "fsmount", "fspick"),
    *("mount_setattr", "pivot_root"),
)
SYNCING = ("fsync", "fdatasync", "syncfs", "sync", "sync_file_range", "msync")
FORKING = ("clone", "clone3", "fork", "vfork")
EXECUTING = ("execve", "execveat")
TRACED = (*COPYING, *MOUNTING, *SYNCING, *FORKING, *EXECUTING)

# What strace is called with, besides processes and -o: `calls` reads no other form.
OPTIONS = (
    "-f", "-y", "-v", "-qq", "-s", "32", "--absolute-timestamps=format:unix,precision:us",
    "-e", f"trace={','.join(TRACED)}", "-e", "signal=none",
)  # fmt: skip

_LINE = re.compile(r"(\d+) +(\d+\.\d+) (.*)")
_RESUMED = re.compile(r"<\.\.\. (\w+) resumed>")
_UNFINISHED = " <unfinished ...>"
_NAME = re.compile(r"(\w+)\(")
_RESULT = re.compile(r"\) += (-?\d+)(?:<.*>)?(?: |$)")
# A frame of SQLite's write-ahead log begins with its page and, in a commit's last frame alone, with
# the size of the database (sqlite.org/fileformat2.html, 4.1): four bytes each.
_WAL_FRAME = re.compile(r'pwrite64\(\d+<[^>]*-wal>, "((?:\\.[0-7]{0,2}|[^"\\])*)"\.*, 24, ')
_DATABASE, _LOG = "/criserver.db>", "/criserver.db-wal>"
_BYTE = re.compile(r"\\(?:[0-7]{1,3}|.)|.", re.DOTALL)
_ZERO = re.compile(r"\\0+")  # three digits where a digit follows


@dataclass(frozen=True)
class Call:
    """A system call that has succeeded; `text` is all that strace says of it."""

    began: float  # s since the epoch
    name: str
    text: str
    result: int


def calls(lines: Iterable[str]) -> Iterator[Call]:
    """Yield the calls of a trace in the order of their ends."""
    begun: dict[str, tuple[str, str]] = {}
    for line in lines:
        if not (found := _LINE.match(line.rstrip("\n"))):
            continue
        pid, began, text = found.groups()
        if text.endswith(_UNFINISHED):
            begun[pid] = (began, text.removesuffix(_UNFINISHED))
            continue
        if resumed := _RESUMED.match(text):
            began, start = begun.pop(pid, (began, f"{resumed[1]}("))
            text = start + text[resumed.end() :]
        if call := _call(float(began), text):
            yield call


def _call(began: float, text: str) -> Call | None:
    name, result = _NAME.match(text), None
    for found in _RESULT.finditer(text):
        result = int(found[1])  # the last one: data may look like a result
    if name is None or result is None or result < 0:
        return None
    return Call(began, name[1], text, result)


def _is_fork(call: Call) -> bool:
    return call.name in FORKING and "CLONE_THREAD" not in call.text


def _commits(call: Call) -> int:
    frame = _WAL_FRAME.match(call.text)
    if frame is None:
        return 0
    return int(any(not _ZERO.fullmatch(byte) for byte in _BYTE.findall(frame[1])[4:8]))


def _netlink_messages(call: Call) -> int:
    return call.text.count("nlmsg_len=") if call.name in ("sendto", "sendmsg") else 0


COUNTED: dict[str, Callable[[Call], int]] = {
    "forks": _is_fork,
    "execs": lambda call: call.name in EXECUTING,
    "syncs": lambda call: call.name in SYNCING,
    "commits": _commits,
    "netlink": _netlink_messages,
    "mounts": lambda call: call.name in MOUNTING,
    "bytes": lambda call: call.result if call.name in COPYING else 0,
}


def without_checkpoint(made: Iterable[Call]) -> Iterator[Call]:
    """Leave out SQLite's folding of its log into the database, every 30 s: no operation's.

    It alone writes the database itself, and syncs: a commit does not (tests/unit/test_store.py).
    """
    for call in made:
        syncs_log = call.name in SYNCING and _LOG in call.text
        if not syncs_log and _DATABASE not in call.text:
            yield call


def count(made: Iterable[Call]) -> Counter[str]:
    """Count what costs time in these calls; what there is none of is 0."""
    found: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
    for call in made:
        for name, of in COUNTED.items():
            found[name] += int(of(call))
    return found
