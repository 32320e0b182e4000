"""Operations as JSON values: what the history stores and what clients draw."""

from __future__ import annotations

from typing import Any

from api.stages import Outcome, Stage, Stages

# A pull of many layers has a stage for each; what is more than this is left out.
MAX_STAGES = 200


def operation_record(operation: Stages) -> dict[str, Any]:
    """Return an operation with its stages; times in ns, a stage's start from the operation's.

    {name, started_at, duration, outcome, code, cause, stages, left_out}; duration is None while it
    goes on.
    """
    return {
        "name": operation.name,
        "started_at": operation.started_at,
        "duration": None if operation.ended is None else operation.ended - operation.started,
        "outcome": operation.outcome.value,
        "code": operation.code,
        "cause": operation.cause,
        "stages": [_stage_record(stage) for stage in operation.all[:MAX_STAGES]],
        "left_out": max(0, len(operation.all) - MAX_STAGES),
    }


def _stage_record(stage: Stage) -> dict[str, Any]:
    """Return a stage; what is usual is left out: no detail, no cause, outcome "ok"."""
    begin = stage.operation.started
    record: dict[str, Any] = {
        "name": stage.name,
        "depth": depth(stage),
        "start": max(0, stage.started - begin),
        "duration": stage.duration,
    }
    if stage.detail:
        record["detail"] = stage.detail
    if stage.outcome is not Outcome.OK:
        record["outcome"] = stage.outcome.value
    if stage.cause:
        record["cause"] = stage.cause
    if stage.events:
        record["events"] = [{"at": event.at - begin, "text": event.text} for event in stage.events]
    return record


def depth(stage: Stage) -> int:
    """Return how many stages a stage is inside of."""
    count = 0
    while stage.parent is not None and stage.parent.operation is stage.operation:
        stage, count = stage.parent, count + 1
    return count


def open_leaves(operation: Stages) -> list[Stage]:
    """Return the open stages with no other open stage in them: where the operation is."""
    opened = operation.opened()
    parents = {stage.parent for stage in opened}
    return [stage for stage in opened if stage not in parents]


def path(stage: Stage) -> str:
    """Return a stage's name after those that it is in: "sandbox > network"."""
    names = [stage.name]
    while stage.parent is not None and stage.parent.operation is stage.operation:
        stage = stage.parent
        names.append(stage.name)
    return " > ".join(reversed(names))
