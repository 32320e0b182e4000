"""What an operation does and when: stages that any package names, and who is told of them.

`with stage("network"):` costs nothing where no operation is being recorded. Stages nest, also
across the tasks that a stage starts; the innermost that is still open is where the operation is.
Metrics, traces and `criserver explain` are observers: each is told of every operation and stage.

    Stages    one operation on one object, from begin() to end(); `all` has its stages in order
    Stage     one stage: start, duration, parent, outcome, and what happened in it (events)
    observe   registers an observer; without any, telling costs one look at an empty tuple
"""

from __future__ import annotations

import contextlib
import enum
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import NamedTuple, Protocol

from api.errors import CRIError

log = logging.getLogger(__name__)

# Bounds what one operation keeps: a pull that is retried for hours, a message that quotes a page.
MAX_EVENTS = 50
MAX_TEXT = 2000

# What another process measured of all its stages together, among them.
TOTAL = "total"


class Outcome(enum.Enum):
    """How a stage or an operation ended."""

    OPEN = "open"  # it has not
    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Event(NamedTuple):
    """Something that happened in a stage, such as an attempt that failed: `at` in monotonic ns."""

    at: int
    text: str


class Stage:
    """One stage of an operation, and the context manager that its body runs in.

    name: one of few, by which metrics tell them apart. detail: what it is about, such as a layer's
    digest. started: monotonic ns. duration: ns, None while it is open. foreign: measured by another
    process, and told of once it was over. waiting: says, for a person, what an open stage waits
    for at this moment.
    """

    __slots__ = (
        "_token",
        "cause",
        "detail",
        "duration",
        "events",
        "foreign",
        "name",
        "operation",
        "outcome",
        "parent",
        "started",
        "waiting",
    )

    def __init__(
        self, operation: Stages, name: str, detail: str = "", parent: Stage | None = None
    ) -> None:
        self.operation = operation
        self.name = name
        self.detail = detail
        self.parent = parent
        self.started = time.monotonic_ns()
        self.duration: int | None = None
        self.outcome = Outcome.OPEN
        self.cause = ""  # of a failure, for a person
        self.events: list[Event] = []
        self.foreign = False
        self.waiting: Callable[[], str] | None = None
        self._token: Token[Stage | None]

    def __enter__(self) -> None:
        self._token = _INNERMOST.set(self)
        self.operation.enter(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _INNERMOST.reset(self._token)
        self.operation.leave(self, error)

    def note(self, text: str) -> None:
        """Record an event; of too many the last are kept."""
        self.events.append(Event(time.monotonic_ns(), text[:MAX_TEXT]))
        del self.events[:-MAX_EVENTS]

    def elapsed(self) -> float:
        """Return the seconds that it took, or has taken so far."""
        return (self.duration or time.monotonic_ns() - self.started) / 1e9


class Stages:
    """One operation: the stages that are open, those that are over, and how it ended.

    name, key: the operation and its object, such as "StopContainer" and a container's id.
    started_at: ns since the epoch; started, ended: monotonic ns. parent: the stage of another
    operation that asked for this one. code: the gRPC status code's name.
    """

    def __init__(self, name: str = "", key: str = "") -> None:
        self.name = name
        self.key = key
        self.parent = _INNERMOST.get()
        self.started_at = time.time_ns()
        self.started = time.monotonic_ns()
        self.ended: int | None = None
        self.outcome = Outcome.OPEN
        self.code = ""
        self.cause = ""
        self.all: list[Stage] = []  # as they began
        self.finished: dict[str, int] = {}  # stage -> ns; of a stage that ran twice, the sum
        self._open: dict[Stage, None] = {}

    def begin(self) -> None:
        """Tell the observers that it begins."""
        _tell("operation_began", self)

    def end(self, error: BaseException | None) -> None:
        """Note how it ended, and tell the observers; what still runs of it may end later."""
        self.ended = time.monotonic_ns()
        self.outcome, self.cause = _outcome(error)
        self.code = _code(error, self.outcome)
        _tell("operation_ended", self)

    def enter(self, stage: Stage) -> None:
        """Open a stage."""
        self.all.append(stage)
        self._open[stage] = None
        _tell("stage_began", stage)

    def leave(self, stage: Stage, error: BaseException | None) -> None:
        """Close a stage and keep its duration."""
        del self._open[stage]
        stage.duration = time.monotonic_ns() - stage.started
        stage.outcome, stage.cause = _outcome(error)
        stage.waiting = None
        self.finished[stage.name] = self.finished.get(stage.name, 0) + stage.duration
        _tell("stage_ended", stage)

    def add(self, timings: Mapping[str, int], prefix: str) -> None:
        """Take over the stages, in ns and in their order, that another process has measured.

        It has just reported, so they are taken to end now, one after the other; they become
        children of the stage that is open here. Where they took longer together than that has
        been open (a fork's two sides overlap), the first are cut to what is left.
        """
        self.finished.update({f"{prefix}.{name}": spent for name, spent in timings.items()})
        parts = {name: spent for name, spent in timings.items() if name != TOTAL}
        parent = _INNERMOST.get()
        ends = time.monotonic_ns() - max(timings.get(TOTAL, 0), sum(parts.values()))
        earliest = self.started if parent is None else parent.started
        for name, spent in parts.items():
            part = Stage(self, f"{prefix}.{name}", parent=parent)
            starts, ends = ends, ends + spent
            part.started, part.foreign = max(starts, earliest), True
            self.all.append(part)
            _tell("stage_began", part)
            part.duration, part.outcome = max(ends, earliest) - part.started, Outcome.OK
            _tell("stage_ended", part)

    def innermost(self) -> Stage | None:
        """Return the stage that was opened last and is still open."""
        return next(reversed(self._open), None)

    def opened(self) -> list[Stage]:
        """Return the stages that are open, in the order of their begin."""
        return list(self._open)

    def current(self) -> tuple[str, float] | None:
        """Return the innermost open stage and the seconds since it began."""
        stage = self.innermost()
        return None if stage is None else (stage.name, stage.elapsed())

    def elapsed(self) -> float:
        """Return the seconds that it took, or has taken so far."""
        return ((self.ended or time.monotonic_ns()) - self.started) / 1e9

    def wall(self, monotonic: int) -> int:
        """Return a moment of this operation, in monotonic ns, as ns since the epoch."""
        return self.started_at + monotonic - self.started


class Observer(Protocol):
    """Who is told of operations and stages: on the event loop's thread, before things go on.

    `operation_began` and `stage_began` are called in the context (contextvars) of who begins it,
    so that an operation can be related to the RPC that asked for it. Of stages that another
    process has measured both are told when they are over. A stage that is shared with another
    operation, such as a layer that two pulls want, may end after its operation.
    """

    def operation_began(self, operation: Stages) -> None:
        """Note that an operation begins."""

    def operation_ended(self, operation: Stages) -> None:
        """Note that it has ended; `outcome`, `code` and `cause` say how."""

    def stage_began(self, stage: Stage) -> None:
        """Note that a stage begins."""

    def stage_ended(self, stage: Stage) -> None:
        """Note that it has ended; `duration`, `outcome` and `cause` are set."""


RECORDER: ContextVar[Stages | None] = ContextVar("stages", default=None)
_INNERMOST: ContextVar[Stage | None] = ContextVar("stage", default=None)
_observers: tuple[Observer, ...] = ()


def observe(observer: Observer) -> Callable[[], None]:
    """Register an observer; returns what takes it out again."""
    global _observers
    _observers = (*_observers, observer)

    def stop() -> None:
        global _observers
        _observers = tuple(each for each in _observers if each is not observer)

    return stop


def record(operation: Stages) -> None:
    """Record, from here on in this context, the stages of `operation`."""
    RECORDER.set(operation)
    _INNERMOST.set(None)


@contextlib.contextmanager
def operation(name: str, key: str) -> Iterator[Stages]:
    """Run the body as operation `name` on the object `key`."""
    made = Stages(name, key)
    made.begin()
    tokens = RECORDER.set(made), _INNERMOST.set(None)
    try:
        yield made
    except BaseException as err:
        made.end(err)
        raise
    else:
        made.end(None)
    finally:
        RECORDER.reset(tokens[0])
        _INNERMOST.reset(tokens[1])


def stage(name: str, detail: str = "") -> AbstractContextManager[None]:
    """Run the body as a named stage of the operation that this task belongs to, if any."""
    recorder = RECORDER.get()
    return _UNRECORDED if recorder is None else Stage(recorder, name, detail, _INNERMOST.get())


def note(text: str) -> None:
    """Record an event of the stage that this task is in: an attempt that failed, an answer."""
    if (innermost := _INNERMOST.get()) is not None:
        innermost.note(text)


def waiting_for(describe: Callable[[], str]) -> None:
    """Tell what says, while the current stage is open, what it waits for.

    It is called only when somebody asks; "" means that there is nothing to say.
    """
    if (innermost := _INNERMOST.get()) is not None:
        innermost.waiting = describe


class _Unrecorded:
    """A stage of no operation."""

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        return


_UNRECORDED = _Unrecorded()


def _outcome(error: BaseException | None) -> tuple[Outcome, str]:
    if error is None:
        return Outcome.OK, ""
    text = (str(error) or type(error).__name__)[:MAX_TEXT]
    return (Outcome.FAILED if isinstance(error, Exception) else Outcome.CANCELLED), text


def _code(error: BaseException | None, outcome: Outcome) -> str:
    if isinstance(error, CRIError):
        return error.code
    return {Outcome.OK: "OK", Outcome.CANCELLED: "CANCELLED"}.get(outcome, "INTERNAL")


def _tell(method: str, subject: Stages | Stage) -> None:
    """Call all observers; one that fails is no reason for an operation to."""
    for observer in _observers:
        try:
            getattr(observer, method)(subject)
        except Exception:
            log.exception("an observer of operations failed in %s", method)
