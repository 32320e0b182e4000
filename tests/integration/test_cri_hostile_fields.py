"""Every field of every request with what nobody should send: a clear code, no fault, nothing left.

The messages are walked by their descriptors, so that a new field is tried as soon as it is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from api.cri import api_pb2 as cri
from criserver.handlers import FUNCTIONS, STREAMS
from tests.integration import harness
from tests.integration.daemon import RPC_SECONDS
from tests.integration.pods import IMAGE, Pods

MIB = 1 << 20
TEXTS = ("a\0b", "a\nb", "/../../a", "/" + "x" * MIB, "\u202e\ufffe")
METHODS: dict[str, MethodDescriptor] = {
    method.name: method
    for service in cri.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
# What refuses a request says so by one of these; UNKNOWN is what kubelets want of a failed pull.
REFUSALS = {
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "UNIMPLEMENTED",
    "UNKNOWN",
}


@pytest.fixture(scope="module")
def pod(pods: Pods) -> Iterator[str]:
    made = pods.run_pod(pods.config(linux=cri.LinuxPodSandboxConfig()))
    yield made
    pods.remove_pod(made)


@pytest.fixture
def container(pods: Pods, pod: str) -> Iterator[str]:
    made = pods.run(pod, "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done")
    yield made
    pods.remove(made)


def fields(kind: Any, inside: tuple[str, ...] = ()) -> Iterator[tuple[str, FieldDescriptor, Any]]:
    """Each scalar field below a message: its path, itself, and how to get to its message."""
    for field in kind.fields:
        path = (*inside, field.name)
        below = field.message_type
        if below is None:
            yield ".".join(path), field, inside
        elif not below.GetOptions().map_entry and below.name not in inside:
            yield from fields(below, path)
        elif below.GetOptions().map_entry:
            yield ".".join(path), field, inside


def changed(request: Message, field: FieldDescriptor, inside: tuple[str, ...], value: Any) -> None:
    """Set one field; of repeated messages on the way, the first."""
    target: Any = request
    for name in inside:
        target = getattr(target, name)
        if hasattr(target, "add"):
            target = target[0] if target else target.add()
    if field.message_type is not None:
        getattr(target, field.name)[value] = value.encode() if is_bytes_map(field) else value
    elif field.is_repeated:
        getattr(target, field.name).append(value)
    else:
        setattr(target, field.name, value)


def is_bytes_map(field: FieldDescriptor) -> bool:
    assert field.message_type is not None
    return field.message_type.fields_by_name["value"].type == FieldDescriptor.TYPE_BYTES


def values(field: FieldDescriptor) -> list[Any]:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return [text.encode() for text in TEXTS]
        case FieldDescriptor.CPPTYPE_STRING:
            return list(TEXTS)
        case FieldDescriptor.CPPTYPE_MESSAGE:  # a map
            return list(TEXTS)
        case FieldDescriptor.CPPTYPE_INT32:
            return [-1, 1 << 30, (1 << 31) - 1, -(1 << 31)]
        case FieldDescriptor.CPPTYPE_INT64:
            return [-1, (1 << 63) - 1, -(1 << 63)]
        case FieldDescriptor.CPPTYPE_UINT32:
            return [(1 << 32) - 1]
        case FieldDescriptor.CPPTYPE_UINT64:
            return [(1 << 64) - 1]
        case FieldDescriptor.CPPTYPE_ENUM:
            return [-1, 99, (1 << 31) - 1]
        case _:
            return [True]


def base(name: str, pods: Pods, pod: str, container: str) -> Message:
    """A request that would be carried out."""
    request: Any = message_factory.GetMessageClass(METHODS[name].input_type)()
    described = request.DESCRIPTOR.fields_by_name
    if "container_id" in described:
        request.container_id = container
    if "pod_sandbox_id" in described:
        request.pod_sandbox_id = pod
    match name:
        case "RunPodSandbox":
            request.config.CopyFrom(pods.config())
        case "CreateContainer":
            request.config.metadata.name = "hostile"
            request.config.image.image = IMAGE
            request.config.command.append("true")
        case "ExecSync":
            request.cmd.append("true")
            request.timeout = 10
        case "Exec":
            request.cmd.append("true")
            request.stdout = True
        case "Attach":
            request.stdout = True
        case "PullImage":
            request.image.image = IMAGE
        case "ImageStatus" | "RemoveImage":
            request.image.image = "registry.test/none"
        case "UpdateRuntimeConfig":
            request.runtime_config.network_config.pod_cidr = ""
    return request


def send(pods: Pods, name: str, request: Message) -> Any:
    """Make the RPC; raises RpcError. A stream is read to its first page."""
    service = pods.daemon.images if "Image" in name else pods.daemon.runtime
    answer = getattr(service, name)(request, timeout=RPC_SECONDS)
    if METHODS[name].server_streaming:
        return next(iter(answer), None)
    return answer


def undo(pods: Pods, name: str, answer: Any) -> None:
    if name == "RunPodSandbox":
        pods.remove_pod(answer.pod_sandbox_id)
    if name == "CreateContainer":
        pods.remove(answer.container_id)


# GetContainerEvents never ends by itself; a stop with hours to go is test_cri_lifecycle's.
TRIED = sorted((FUNCTIONS | STREAMS).keys() - {"GetContainerEvents", "StopContainer"})


@pytest.mark.parametrize("name", TRIED)
def test_no_field_is_a_fault(pods: Pods, pod: str, container: str, name: str) -> None:
    before = pods.remains()
    log = pods.daemon.log.stat().st_size
    wrong = []
    for path, field, inside in fields(METHODS[name].input_type):
        for value in values(field):
            request = base(name, pods, pod, container)
            changed(request, field, inside, value)
            said = attempt(pods, name, request)
            if said:
                wrong.append(f"{path} = {str(value)[:20]!r}: {said[:200]}")
    assert not wrong, "\n".join(wrong)
    with pods.daemon.log.open() as lines:
        lines.seek(log)
        assert not [line for line in lines if ": a fault" in line or "Traceback" in line]
    for directory in harness.cgroup_dirs(f"/{TEXTS[-1]}"):  # a pod's cgroup parent is the kubelet's
        directory.rmdir()
    pods.assert_remains(before)


def attempt(pods: Pods, name: str, request: Message) -> str:
    """Make the RPC; what is wrong with its refusal, if it is refused."""
    try:
        undo(pods, name, send(pods, name, request))
    except grpc.RpcError as err:
        error: Any = err
        code, details = error.code().name, error.details()
        if code not in REFUSALS or "Traceback" in details or not details:
            return f"{code}: {details}"
        if code == "UNKNOWN" and not details.startswith("RegistryUnavailable"):
            return f"{code}: {details}"
    return ""
