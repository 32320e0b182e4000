"""How the Stream RPCs cut a list into messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from google.protobuf.message import Message

T = TypeVar("T")
M = TypeVar("M", bound=Message)

# What is measured, or put together, at a time: other RPCs have their turn in between.
CHUNK_ITEMS = 50

# A message ends at 16 MiB; one item has at most that, since it came in a message.
PAGE_BYTES = 4 << 20


def chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut a list into pieces of CHUNK_ITEMS; an empty one has no piece."""
    for start in range(0, len(items), CHUNK_ITEMS):
        yield items[start : start + CHUNK_ITEMS]


def pages(messages: Iterable[M]) -> Iterator[list[M]]:
    """Cut messages into pages of some PAGE_BYTES, none of them empty."""
    page: list[M] = []
    size = 0
    for message in messages:
        length = message.ByteSize()
        if page and size + length > PAGE_BYTES:
            yield page
            page, size = [], 0
        page.append(message)
        size += length
    if page:
        yield page
