"""The answer to "what happened to this, and what is it waiting for?"."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from api.errors import InvalidArgumentError, NotFoundError
from api.stages import Stage, Stages
from criserver.explain.history import History
from criserver.explain.record import open_leaves, operation_record, path
from criserver.explain.subjects import CONTAINER, IMAGE, POD, Subject
from criserver.operations import Operations
from criserver.store.containers import State
from imageservice import reference as references

# A process whose memory is locked can hold up whoever reads about it in /proc.
LOOK_SECONDS = 5.0
# Others of the same name that are listed.
MAX_OTHERS = 10
MAX_SHOWN = 256
# Operations that are told of: a pod whose containers crash in a loop has many.
MAX_TIMELINE = 200
TROUBLE_FIELDS = ("name", "started_at", "duration", "cause", "times", "first_at")


class Explainer:
    """Puts together what the history, the operations under way and the kernel say."""

    def __init__(
        self,
        history: History,
        operations: Operations,
        stuck: Callable[[str], str],
    ) -> None:
        """`stuck` names the processes of a container that hang in the kernel, "" for none."""
        self._history = history
        self._subjects = history.alive
        self._operations = operations
        self._stuck_in = stuck

    async def explain(self, reference: str) -> dict[str, Any]:
        """Return all about the pod, container or image that a person names.

        {object, others, state, now, waiting, troubles, timeline}: see docs/troubleshooting.md.
        Raises NotFoundError, InvalidArgumentError.
        """
        subject, others = self._find(reference)
        involved = self._involved(subject)
        timeline = [
            {"object": str(one), "key": one.key, **record}
            for one in involved
            for record in self._records(one)
        ]
        timeline.sort(key=lambda record: int(record["started_at"]))
        del timeline[:-MAX_TIMELINE]
        return {
            "object": {**asdict(subject), "text": str(subject)},
            "others": [{**asdict(one), "text": str(one)} for one in others[:MAX_OTHERS]],
            "state": self._state(subject),
            "now": time.time_ns(),
            "waiting": await self._waiting(involved),
            "troubles": _troubles(timeline),
            "timeline": timeline,
        }

    def _find(self, reference: str) -> tuple[Subject, list[Subject]]:
        """Return whom a person means, and whom else they might mean."""
        if not reference:
            raise InvalidArgumentError("name a pod, a container or an image")
        current = self._subjects.all()
        known = {subject.key for subject in current}
        remembered = [one for one in self._history.subjects() if one.key not in known]
        found = [one for one in (*current, *remembered) if one.is_called(reference)]
        if not found:
            name = _image_name(reference)
            found = [one for one in remembered if one.kind == IMAGE and one.key == name]
        if not found:
            raise NotFoundError("pod, container or pull of an image", reference[:MAX_SHOWN])
        return found[0], found[1:]

    def _involved(self, subject: Subject) -> list[Subject]:
        """Return the object and what belongs to it: a pod's containers and their images' pulls."""
        if subject.kind != POD:
            return [subject]
        members: dict[str, Subject] = {}
        for one in (*self._subjects.all(), *self._history.subjects()):
            if one.kind == CONTAINER and one.sandbox == subject.key:
                members.setdefault(one.key, one)
        images = [Subject(name, IMAGE, name) for name in self._history.images_of(subject.key)]
        return [subject, *members.values(), *images]

    def _records(self, subject: Subject) -> list[dict[str, Any]]:
        opened = self._history.under_way(subject.key)
        return self._history.operations(subject.key) + [
            operation_record(operation)
            | {"times": 1, "first_at": operation.started_at, "waiting": _places(operation)}
            for operation in opened
        ]

    def _state(self, subject: Subject) -> str:
        """Return the object's state in a word, "removed" when it is gone."""
        found = self._subjects.find(subject.key)
        if subject.kind == IMAGE:
            return ""
        if found is None:
            return "removed"
        if found.container is not None:
            container = found.container
            return container.state.name if container.made else "being made"
        if not found.sandbox.made:
            return "being made"
        return "NOTREADY" if found.sandbox.stopped_at else "READY"

    # -- what it waits for --------------------------------------------------------------------

    async def _waiting(self, subjects: Iterable[Subject]) -> list[dict[str, Any]]:
        waiting: list[dict[str, Any]] = []
        for subject in subjects:
            for operation in self._history.under_way(subject.key):
                stages: list[Stage | None] = [*open_leaves(operation)]
                for stage in stages or [None]:
                    waiting.append(await self._wait_of(subject, operation, stage))
            for queued in self._operations.queue(subject.key):
                waiting.append(
                    {
                        "object": str(subject),
                        "operation": queued.name,
                        "seconds": (time.monotonic_ns() - queued.since) / 1e9,
                        "stage": "",
                        "detail": "",
                        "stage_seconds": 0.0,
                        "text": f"its turn: {queued.behind.where()}",
                        "events": [],
                    }
                )
            waiting += await self._stuck(subject)
        return waiting

    async def _wait_of(
        self, subject: Subject, operation: Stages, stage: Stage | None
    ) -> dict[str, Any]:
        text = ""
        if stage is not None and stage.waiting is not None:
            text = await _look(stage.waiting)
        return {
            "object": str(subject),
            "operation": operation.name,
            "seconds": operation.elapsed(),
            "stage": "" if stage is None else path(stage),
            "detail": "" if stage is None else stage.detail,
            "stage_seconds": 0.0 if stage is None else stage.elapsed(),
            "text": text,
            "events": [] if stage is None else [event.text for event in stage.events],
        }

    async def _stuck(self, subject: Subject) -> list[dict[str, Any]]:
        """Return the processes of a container that hang in the kernel."""
        found = self._subjects.find(subject.key)
        if found is None or found.container is None or found.container.state is not State.RUNNING:
            return []
        text = await _look(lambda: self._stuck_in(subject.key))
        if not text:
            return []
        return [
            {
                "object": str(subject),
                "operation": "",
                "seconds": 0.0,
                "stage": "",
                "detail": "",
                "stage_seconds": 0.0,
                "text": text,
                "events": [],
            }
        ]


async def _look(describe: Callable[[], str]) -> str:
    """Look at processes on a thread, which a kernel that is in trouble may hold up."""
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            return await asyncio.to_thread(describe)
    except TimeoutError:
        return f"the kernel does not say within {LOOK_SECONDS:g} s what its processes do"


def _places(operation: Stages) -> list[str]:
    return [path(stage) for stage in open_leaves(operation)]


def _image_name(reference: str) -> str:
    try:
        return str(references.parse(reference))
    except InvalidArgumentError:
        return ""


def _troubles(timeline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the failures that no later success of the same operation has made good.

    Attempts that failed for one reason, each on an object of the same name, are counted together.
    """
    troubles: dict[tuple[str, str], dict[str, Any]] = {}
    for record in timeline:
        same = (record["object"], record["name"])
        before = troubles.pop(same, None)
        if record["outcome"] in ("cancelled", "open") and before is not None:
            troubles[same] = before
        elif record["outcome"] == "failed":
            trouble = {name: record[name] for name in ("object", *TROUBLE_FIELDS)}
            if before is not None and before["cause"] == trouble["cause"]:
                trouble["times"] += before["times"]
                trouble["first_at"] = before["first_at"]
            troubles[same] = trouble
    return list(troubles.values())
