"""Checks of request fields; each error names the field as the CRI does."""

from __future__ import annotations

import os
import posixpath

from api.errors import InvalidArgumentError

MAX_PATH = 4096  # with the NUL at its end (linux/limits.h)


def invalid(field: str, why: str) -> InvalidArgumentError:
    """Return the error for a field."""
    return InvalidArgumentError(f"{field}: {why}")


def text(field: str, value: str) -> str:
    """Refuse a NUL byte, which would end the string early for the kernel."""
    if "\0" in value:
        raise invalid(field, "contains a NUL byte")
    return value


def absolute_path(field: str, value: str) -> str:
    """Return an absolute path without "." and double slashes; ".." is refused."""
    if not text(field, value).startswith("/"):
        raise invalid(field, f"{value[:256]!r} is not an absolute path")
    if ".." in value.split("/"):
        raise invalid(field, f"{value[:256]!r} contains '..'")
    if len(os.fsencode(value)) >= MAX_PATH:
        raise invalid(field, f"{value[:256]!r}... is longer than {MAX_PATH - 1} bytes")
    return "/" + posixpath.normpath(value).lstrip("/")
