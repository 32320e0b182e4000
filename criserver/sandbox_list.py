"""ListPodSandbox and StreamPodSandboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from api.cri import api_pb2 as cri
from criserver.container_list import by_id, has_labels
from criserver.paging import pages
from criserver.runtime import Runtime
from criserver.store.sandboxes import Sandbox


async def list_pod_sandbox(
    runtime: Runtime, request: cri.ListPodSandboxRequest
) -> cri.ListPodSandboxResponse:
    """List the sandboxes that match all parts of the filter."""
    sandboxes = matching_sandboxes(runtime, request.filter)
    return cri.ListPodSandboxResponse(items=[sandbox.listed for sandbox in sandboxes])


async def stream_pod_sandboxes(
    runtime: Runtime, request: cri.StreamPodSandboxesRequest
) -> AsyncIterator[cri.StreamPodSandboxesResponse]:
    """ListPodSandbox in pieces; what is removed meanwhile may still be in it."""
    found = matching_sandboxes(runtime, request.filter)
    for page in pages(sandbox.listed for sandbox in list(found)):
        yield cri.StreamPodSandboxesResponse(pod_sandboxes=page)


def matching_sandboxes(runtime: Runtime, wanted: cri.PodSandboxFilter) -> Iterator[Sandbox]:
    """Return the sandboxes that match all parts of the filter, oldest first."""
    found = iter(by_id(runtime.sandboxes.mirror, wanted.id))
    if wanted.HasField("state"):
        state = wanted.state.state
        found = (each for each in found if each.state == state)
    if selector := dict(wanted.label_selector):
        found = (each for each in found if has_labels(each.message.labels, selector))
    return found
