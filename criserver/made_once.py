"""Creation under a name: a retry joins the creation, or is handed what it missed."""

from __future__ import annotations

from typing import Protocol, TypeVar

from api.errors import AlreadyExistsError
from criserver.operations import Operations
from criserver.store.mirror import Mirror, Record

R = TypeVar("R", bound=Record)


class Store(Protocol[R]):
    """What is needed of the stores of sandboxes and containers."""

    mirror: Mirror[R]

    def remove(self, object_id: str, /) -> None: ...  # noqa: D102


def holder_of(operations: Operations, name: str, store: Store[R], wanted: str) -> R | None:
    """Return who holds the name `wanted`; None when the operation `name` may make it.

    One that is neither made nor being made is what is left of a creation that could not be undone
    on disk, because that was full: it goes now.
    """
    holder = store.mirror.by_name(wanted)
    if holder is not None and not holder.made and not operations.in_flight(holder.id, name):
        store.remove(holder.id)
        return None
    return holder


async def join_or_claim(operations: Operations, name: str, holder: Record) -> str:
    """Return the id of the object that holds the wanted name, if the caller may have it.

    The kubelet repeats a creation that outlasted its deadline, with the same name: it joins the
    operation `name`, or gets the finished object that nobody was there to take, or of which that
    cannot be told (see Operations.offer). Otherwise the name belongs to somebody:
    AlreadyExistsError.
    """
    if not holder.made and operations.in_flight(holder.id, name):
        return await operations.run(holder.id, name, _never)
    if holder.made and operations.claim(holder.id):
        return holder.id
    raise AlreadyExistsError(f"the name {holder.name} belongs to {holder.id}")


async def _never() -> str:
    raise AssertionError("the operation that was in flight is gone")
