"""The image in memory of a table of records: look-up by id, unique id prefix, and name."""

from __future__ import annotations

import bisect
from typing import Generic, Protocol, TypeVar

from api.errors import InvalidArgumentError, NotFoundError

# An id has 64 characters; what a caller sent in its place may have a million.
MAX_SHOWN = 80


class Record(Protocol):
    """What a mirrored record has."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def made(self) -> bool: ...  # noqa: D102 - false while its creation is under way


R = TypeVar("R", bound=Record)


class Mirror(Generic[R]):
    """Records by id. Those still being made hold their name and are otherwise invisible."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._records: dict[str, R] = {}
        self._ids: dict[str, str] = {}  # name -> id
        self._sorted: list[str] = []  # ids of what is made

    def put(self, record: R) -> None:
        """Add or replace a record."""
        if record.made and not (record.id in self._records and self._records[record.id].made):
            bisect.insort(self._sorted, record.id)
        self._records[record.id] = record
        self._ids[record.name] = record.id

    def drop(self, record_id: str) -> None:
        """Remove a record and free its name."""
        record = self._records.pop(record_id)
        del self._ids[record.name]
        if record.made:
            del self._sorted[bisect.bisect_left(self._sorted, record_id)]

    def __contains__(self, record_id: str) -> bool:
        return record_id in self._records

    def exact(self, record_id: str) -> R:
        """Return the record of a full id, made or not; KeyError if there is none."""
        return self._records[record_id]

    def by_name(self, name: str) -> R | None:
        """Return the record, made or not, that holds a name."""
        record_id = self._ids.get(name)
        return None if record_id is None else self._records[record_id]

    def made(self) -> list[R]:
        """Return all records that are made, oldest first."""
        return [record for record in self._records.values() if record.made]

    def unmade(self) -> list[R]:
        """Return the records whose creation has not come to its end."""
        return [record for record in self._records.values() if not record.made]

    def find(self, reference: str) -> R | None:
        """Return the record of an id or of a prefix that only one id has.

        Raises InvalidArgumentError when the reference is empty or several ids begin with it.
        """
        if not reference:
            raise InvalidArgumentError(f"the {self._kind} id is empty")
        record = self._records.get(reference)
        if record is not None:
            return record if record.made else None
        first = bisect.bisect_left(self._sorted, reference)
        matches = [i for i in self._sorted[first : first + 2] if i.startswith(reference)]
        if len(matches) > 1:
            raise InvalidArgumentError(f"several {self._kind} ids begin with {reference!r}")
        return self._records[matches[0]] if matches else None

    def get(self, reference: str) -> R:
        """Return the record of an id or unique prefix; NotFoundError if there is none."""
        record = self.find(reference)
        if record is None:
            raise NotFoundError(self._kind, reference[:MAX_SHOWN])
        return record
