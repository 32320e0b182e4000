"""ListContainers, StreamContainers, and the filters that all lists share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping

from api.cri import api_pb2 as cri
from api.errors import InvalidArgumentError
from criserver.paging import pages
from criserver.runtime import Runtime
from criserver.store.containers import CRI_STATES, Container
from criserver.store.mirror import Mirror, R


async def list_containers(
    runtime: Runtime, request: cri.ListContainersRequest
) -> cri.ListContainersResponse:
    """List the containers that match all parts of the filter."""
    containers = matching_containers(runtime, request.filter)
    return cri.ListContainersResponse(containers=[container.listed for container in containers])


async def stream_containers(
    runtime: Runtime, request: cri.StreamContainersRequest
) -> AsyncIterator[cri.StreamContainersResponse]:
    """ListContainers in pieces; what is removed meanwhile may still be in it."""
    found = matching_containers(runtime, request.filter)
    for page in pages(container.listed for container in list(found)):
        yield cri.StreamContainersResponse(containers=page)


def matching_containers(runtime: Runtime, wanted: cri.ContainerFilter) -> Iterator[Container]:
    """Return the containers that match all parts of the filter, oldest first."""
    found = selected_containers(runtime, wanted)
    if not wanted.HasField("state"):
        return found
    state = wanted.state.state
    return (container for container in found if CRI_STATES[container.state] == state)


def selected_containers(
    runtime: Runtime, wanted: cri.ContainerFilter | cri.ContainerStatsFilter
) -> Iterator[Container]:
    """Return those that match what lists and statistics filter by, oldest first."""
    found = iter(by_id(runtime.containers.mirror, wanted.id))
    if wanted.pod_sandbox_id:
        sandbox = full_id(runtime.sandboxes.mirror, wanted.pod_sandbox_id)
        found = (each for each in found if each.sandbox_id == sandbox)
    if selector := dict(wanted.label_selector):
        found = (each for each in found if has_labels(each.message_config.labels, selector))
    return found


def by_id(mirror: Mirror[R], reference: str) -> list[R]:
    """Return what an id or unique prefix in a filter selects: all, one, or nothing."""
    if not reference:
        return mirror.made()
    selected = full_id(mirror, reference)
    return [mirror.exact(selected)] if selected else []


def full_id(mirror: Mirror[R], reference: str) -> str:
    """Return the full id of an id or unique prefix in a filter; empty when it selects nothing."""
    try:
        record = mirror.find(reference) if reference else None
    except InvalidArgumentError:  # ambiguous: a filter that selects none, as the peers have it
        return ""
    return record.id if record else ""


def has_labels(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Tell whether all the selector's labels are there with its values."""
    return all(labels.get(key) == value for key, value in selector.items())
