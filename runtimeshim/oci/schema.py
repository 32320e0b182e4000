"""Checks for the types of a JSON document, put together to tables like oci/spec.py.

A check is a function that raises Wrong or returns. Where a value stands is found out only on the
way out of a failure, so a document without one costs a dictionary look-up and a call for each
field.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import Any

    Check = Callable[[Any], None]


UINT16 = (1 << 16) - 1
UINT32 = (1 << 32) - 1
UINT64 = (1 << 64) - 1
INT64 = (1 << 63) - 1

# A value is quoted in an error up to this length: it may be a whole profile.
_QUOTED = 80


class Wrong(Exception):  # noqa: N818 - caught within this package, where it reads as a sentence
    """A value is not what its field takes; `path` grows from the inside out."""

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path

    def within(self, step: str) -> None:
        """Note one step on the way to the value: "name" or "[3]"."""
        separator = "." if self.path and not self.path.startswith("[") else ""
        self.path = f"{step}{separator}{self.path}"


def quote(value: Any) -> str:
    """Return a value for an error message, shortened."""
    text = repr(value)
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"


def text(value: Any) -> None:
    """A string that the kernel can be given: no NUL, and encodable."""
    if type(value) is not str:
        raise Wrong(f"{quote(value)} is not a string")
    if "\0" in value:
        raise Wrong(f"{quote(value)} has a NUL byte in it")
    if not value.isascii():
        try:
            value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise Wrong(f"{quote(value)} is not valid Unicode") from None


def absolute(value: Any) -> None:
    """An absolute path."""
    text(value)
    if value[:1] != "/":
        raise Wrong(f"{quote(value)} is not an absolute path")


def filled(value: Any) -> None:
    """A string that is not empty."""
    text(value)
    if not value:
        raise Wrong("empty")


def boolean(value: Any) -> None:
    """A boolean."""
    if value is not True and value is not False:
        raise Wrong(f"{quote(value)} is not a boolean")


def integer(least: int, most: int) -> Check:
    """An integer between two bounds, both included."""

    def check(value: Any) -> None:
        if type(value) is not int:  # True is an int for isinstance
            raise Wrong(f"{quote(value)} is not an integer")
        if not least <= value <= most:
            raise Wrong(f"{value} is not between {least} and {most}")

    return check


def one_of(names: Collection[str]) -> Check:
    """One of some names."""
    known = frozenset(names)

    def check(value: Any) -> None:
        if type(value) is not str:
            raise Wrong(f"{quote(value)} is not a string")
        if value not in known:
            raise Wrong(f"{quote(value)} is none of {', '.join(names)}")

    return check


def texts(value: Any) -> None:
    """A list of strings; looked at one by one only where something is wrong with one."""
    if type(value) is not list:
        raise Wrong(f"{quote(value)} is not a list")
    try:
        joined = "".join(value)
        if joined.isascii() and "\0" not in joined:
            return
    except TypeError:
        pass  # one is no string; the loop finds it
    _each(value, text)


def listed(item: Check) -> Check:
    """A list of such items."""

    def check(value: Any) -> None:
        if type(value) is not list:
            raise Wrong(f"{quote(value)} is not a list")
        _each(value, item)

    return check


def _each(items: list[Any], check: Check) -> None:
    index = 0
    try:
        for index, item in enumerate(items):  # noqa: B007 - it is used in the error
            check(item)
    except Wrong as err:
        err.within(f"[{index}]")
        raise


def keyed(item: Check) -> Check:
    """An object with names of the caller's own, each with such a value."""

    def check(value: Any) -> None:
        if type(value) is not dict:
            raise Wrong(f"{quote(value)} is not an object")
        key = ""
        try:
            for key, each in value.items():
                text(key)
                item(each)
        except Wrong as err:
            err.within(f"[{quote(key)}]")
            raise

    return check


def record(fields: Mapping[str, Check], *required: str) -> Check:
    """An object with these fields; others are let be (config.md, "Extensibility").

    null is the same as absent, as it is for the peers' decoders.
    """
    known = fields.get

    def check(value: Any) -> None:
        if type(value) is not dict:
            raise Wrong(f"{quote(value)} is not an object")
        for key, item in value.items():
            test = known(key)
            if test is not None and item is not None:
                try:
                    test(item)
                except Wrong as err:
                    err.within(key)
                    raise
        for key in required:
            if value.get(key) is None:
                raise Wrong("missing", key)

    return check
