"""Finding the containers and pods that a person names, and taking away what `run` made."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from api.cri import api_pb2 as cri
from criserver.cli.client import Client
from criserver.cli.errors import FAILURE, CommandError

Named = TypeVar("Named", cri.Container, cri.PodSandbox)

# On the pods and containers that `run` made: each pod is its container's, and goes with it.
MADE_BY_RUN = "io.criserver.cli.run"

# On those pods: where their log is. A kubelet makes and deletes the log directories of its pods; of
# these pods `run` and `rm` are the kubelet.
LOG_DIRECTORY = "io.criserver.cli.log-directory"


def find_container(client: Client, reference: str) -> cri.Container:
    """Return the container of this id, name or unique beginning of an id.

    Raises CommandError when there is none or more than one.
    """
    found = search_container(client, reference)
    if found is None:
        raise CommandError(f"no container {reference!r}: `criserver ps -a` lists them")
    return found


def search_container(client: Client, reference: str) -> cri.Container | None:
    """Return the container, or None. Raises CommandError when there is more than one."""
    with client.doing("list containers"):
        containers = client.runtime.ListContainers(cri.ListContainersRequest()).containers
    return _search(containers, reference)


def find_pod(client: Client, reference: str) -> cri.PodSandbox:
    """Return the pod of this id, name or unique beginning of an id.

    Raises CommandError when there is none or more than one.
    """
    with client.doing("list pods"):
        pods = client.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
    found = _search(pods, reference)
    if found is None:
        raise CommandError(f"no pod {reference!r}: `criserver pods` lists them")
    return found


def _search(those: Iterable[Named], reference: str) -> Named | None:
    """Return the one that is meant: the whole id counts before a name, and that before a part."""
    listed = list(those)
    for matches in (
        [each for each in listed if each.id == reference],
        [each for each in listed if each.metadata.name == reference],
        [each for each in listed if reference and each.id.startswith(reference)],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            ids = ", ".join(each.id for each in matches)
            raise CommandError(f"{reference!r} is not unique: use one of the ids {ids}")
    return None


def container_status(client: Client, container_id: str) -> cri.ContainerStatus:
    """Return a container's status. Raises CommandError."""
    with client.doing(f"get the status of {container_id}"):
        request = cri.ContainerStatusRequest(container_id=container_id)
        return client.runtime.ContainerStatus(request).status


def is_made_by_run(container: cri.Container) -> bool:
    """Whether the container's pod was made by `run` for it alone."""
    return MADE_BY_RUN in container.labels


def remove_pod(client: Client, pod_id: str, log_directory: str) -> None:
    """Stop and remove a pod with its containers, and its log if `run` made one; idempotent."""
    with client.doing(f"stop pod {pod_id}"):
        client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id))
    with client.doing(f"remove pod {pod_id}"):
        client.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id))
    if log_directory:
        remove_log(Path(log_directory))


def remove_log(directory: Path) -> None:
    """Remove the log directory of a pod that `run` made; one that is gone is no error."""
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        pass
    except OSError as err:
        raise CommandError(f"cannot remove the log {directory}: {err}") from err


def for_each(verb: str, references: Sequence[str], action: Callable[[str], None]) -> int:
    """Do one thing to each of many, printing each that succeeded; a failure stops no other.

    Returns the command's exit code.
    """
    exit_code = 0
    for reference in references:
        try:
            action(reference)
        except CommandError as err:
            sys.stderr.write(f"criserver {verb}: {err}\n")
            exit_code = FAILURE
        else:
            sys.stdout.write(f"{reference}\n")
    return exit_code
