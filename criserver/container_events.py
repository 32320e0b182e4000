"""GetContainerEvents: a message at every change of a sandbox or container."""

from __future__ import annotations

from collections.abc import AsyncIterator

from api.cri import api_pb2 as cri
from criserver.container_status import RepoDigest, newest_first
from criserver.events import Change
from criserver.runtime import Runtime
from criserver.sandbox_status import status_of as sandbox_status_of


async def get_container_events(
    runtime: Runtime, _request: cri.GetEventsRequest
) -> AsyncIterator[cri.ContainerEventResponse]:
    """Send events until the client leaves or the daemon stops.

    Raises ResourceExhaustedError when the client is too slow to be told everything.
    """
    with runtime.events.listen() as listener:
        async for change in listener.changes():
            yield message(change, runtime.images.repo_digest)


def message(change: Change, repo_digest: RepoDigest) -> cri.ContainerEventResponse:
    """Return the message of a change; the statuses are those right after it."""
    return cri.ContainerEventResponse(
        container_id=change.subject,
        container_event_type=change.type,
        created_at=change.created_at,
        pod_sandbox_status=sandbox_status_of(change.sandbox),
        containers_statuses=newest_first(change.containers, repo_digest),
    )
