"""A real gRPC server and client in this process: codes, readiness, deadlines, log, sizes."""

import asyncio
import logging
import stat

import grpc
import pytest

from api.cri import api_pb2 as cri
from api.cri import api_pb2_grpc
from api.errors import (
    AlreadyExistsError,
    CRIError,
    DeadlineExceededError,
    FailedPreconditionError,
    ImagePullError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
)
from criserver import interceptors, server
from criserver.access_log import AccessLog
from criserver.operations import Operations


class Served:
    """A server whose handlers a test sets, and a client of it."""

    def __init__(self, tmp_path):
        self.socket = tmp_path / "run" / "criserver.sock"
        self.handlers = {}
        self.readiness = interceptors.Readiness()
        self.readiness.ready()

    async def __aenter__(self):
        self.server = server.make_server(self.handlers, self.readiness, [AccessLog()])
        server.bind(self.server, self.socket)
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"unix://{self.socket}", options=server.OPTIONS)
        self.runtime = api_pb2_grpc.RuntimeServiceStub(self.channel)
        self.images = api_pb2_grpc.ImageServiceStub(self.channel)
        return self

    async def __aexit__(self, *_):
        await self.channel.close()
        await self.server.stop(None)


def answer(value):
    async def handler(_request):
        if isinstance(value, Exception):
            raise value
        return value

    return handler


@pytest.fixture
def served(tmp_path):
    return Served(tmp_path)


async def failure(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


async def test_a_handler_is_called_and_its_answer_arrives(served):
    served.handlers["Version"] = answer(cri.VersionResponse(runtime_name="criserver"))
    async with served:
        assert (await served.runtime.Version(cri.VersionRequest())).runtime_name == "criserver"


@pytest.mark.parametrize(
    "error",
    [
        NotFoundError("container", "abc"),
        AlreadyExistsError("taken"),
        InvalidArgumentError("wrong"),
        FailedPreconditionError("not now"),
        UnavailableError("away"),
        DeadlineExceededError("late"),
        ResourceExhaustedError("full"),
        UnimplementedError("not there"),
        InternalError("broken"),
        ImagePullError("RegistryUnavailable: no answer"),
    ],
)
async def test_every_error_becomes_its_code_with_its_message(served, error):
    served.handlers["ContainerStatus"] = answer(error)
    async with served:
        code, details = await failure(served.runtime.ContainerStatus(cri.ContainerStatusRequest()))
    assert code is grpc.StatusCode[error.code]
    assert details == str(error)


def test_every_error_class_names_a_grpc_code():
    for error in CRIError.__subclasses__():
        assert grpc.StatusCode[error.code]


async def test_a_fault_is_internal_without_a_traceback_to_the_client(served, caplog):
    served.handlers["Version"] = answer(ZeroDivisionError("by zero"))
    async with served:
        code, details = await failure(served.runtime.Version(cri.VersionRequest()))
    assert (code, details) == (grpc.StatusCode.INTERNAL, "ZeroDivisionError: by zero")
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("text", ["x", "ü", "\U0001f433", "\n", "%"])
async def test_a_huge_message_is_cut_so_that_it_arrives(served, text):
    served.handlers["Version"] = answer(InvalidArgumentError(text * 100_000))
    async with served:
        code, details = await failure(served.runtime.Version(cri.VersionRequest()))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith(text)
    assert details.endswith(text)


async def test_what_has_no_handler_is_unimplemented_and_says_so(served):
    async with served:
        code, details = await failure(served.runtime.Attach(cri.AttachRequest()))
        assert (code, details) == (
            grpc.StatusCode.UNIMPLEMENTED,
            "criserver does not implement Attach",
        )
        call = served.runtime.StreamContainers(cri.StreamContainersRequest())
        code, details = await failure(call.read())
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert details == "criserver does not implement StreamContainers"


async def test_every_method_of_both_services_answers(served):
    async with served:
        for service in cri.DESCRIPTOR.services_by_name.values():
            stub = served.runtime if service.name == "RuntimeService" else served.images
            for method in service.methods:
                request = getattr(cri, method.input_type.name)()
                call = getattr(stub, method.name)(request)
                code, details = await failure(call.read() if method.server_streaming else call)
                assert code is grpc.StatusCode.UNIMPLEMENTED
                assert details == f"criserver does not implement {method.name}"


async def test_until_it_is_ready_everything_is_unavailable(served):
    served.handlers["Version"] = answer(cri.VersionResponse())
    served.readiness.close("criserver is recovering")
    async with served:
        code, details = await failure(served.runtime.Version(cri.VersionRequest()))
        assert (code, details) == (
            grpc.StatusCode.UNAVAILABLE,
            "criserver is recovering; try again",
        )
        call = served.runtime.GetContainerEvents(cri.GetEventsRequest())
        assert (await failure(call.read()))[0] is grpc.StatusCode.UNAVAILABLE
        served.readiness.ready()
        await served.runtime.Version(cri.VersionRequest())


async def test_a_deadline_reaches_the_client_as_a_message_with_the_stage(served):
    operations = Operations()
    release = asyncio.Event()

    async def run(_request):
        await operations.run("abc", "RunPodSandbox", release.wait)
        return cri.RunPodSandboxResponse(pod_sandbox_id="abc")

    served.handlers["RunPodSandbox"] = run
    async with served:
        call = served.runtime.RunPodSandbox(cri.RunPodSandboxRequest(), timeout=1)
        code, details = await failure(call)
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "RunPodSandbox of abc" in details
        release.set()
        response = await served.runtime.RunPodSandbox(cri.RunPodSandboxRequest())
    assert response.pod_sandbox_id == "abc"


async def test_the_log_has_ids_and_outcome_but_never_the_request(served, caplog):
    caplog.set_level(logging.DEBUG)
    served.handlers["PullImage"] = answer(cri.PullImageResponse(image_ref="sha256:1"))
    served.handlers["RunPodSandbox"] = answer(cri.RunPodSandboxResponse(pod_sandbox_id="abc"))
    served.handlers["StartContainer"] = answer(NotFoundError("container", "def"))
    auth = cri.AuthConfig(username="joe", password="s3cret", registry_token="t0ken")
    metadata = cri.PodSandboxMetadata(name="web", namespace="prod", uid="1")
    async with served:
        image = cri.ImageSpec(image="busybox:1")
        await served.images.PullImage(cri.PullImageRequest(image=image, auth=auth))
        config = cri.PodSandboxConfig(metadata=metadata, annotations={"password": "hunter2"})
        await served.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config))
        await failure(served.runtime.StartContainer(cri.StartContainerRequest(container_id="def")))
    lines = [r.getMessage() for r in caplog.records if r.name == "criserver.rpc"]
    assert lines[0].startswith("PullImage image='busybox:1' ")
    assert lines[1].startswith("RunPodSandbox pod=prod/web pod_sandbox_id='abc' ")
    assert lines[2].startswith("StartContainer container_id='def' ")
    assert lines[2].endswith("NOT_FOUND: container 'def' not found")
    for secret in ("joe", "s3cret", "t0ken", "hunter2"):
        assert secret not in caplog.text


async def test_polling_is_not_logged_unless_it_fails(served, caplog):
    caplog.set_level(logging.INFO)
    served.handlers["ListContainers"] = answer(cri.ListContainersResponse())
    served.handlers["ContainerStatus"] = answer(NotFoundError("container", "x"))
    async with served:
        await served.runtime.ListContainers(cri.ListContainersRequest())
        await failure(served.runtime.ContainerStatus(cri.ContainerStatusRequest()))
    lines = [r.getMessage() for r in caplog.records if r.name == "criserver.rpc"]
    assert len(lines) == 1
    assert lines[0].startswith("ContainerStatus")


async def test_messages_up_to_16_mib_pass(served):
    payload = b"x" * (16 * 1024 * 1024 - 1024)
    served.handlers["ExecSync"] = answer(cri.ExecSyncResponse(stdout=payload))
    async with served:
        assert (await served.runtime.ExecSync(cri.ExecSyncRequest())).stdout == payload


async def test_the_socket_is_private(served):
    async with served:
        assert stat.S_IMODE(served.socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(served.socket.parent.stat().st_mode) == 0o700


async def test_a_dead_daemons_socket_is_replaced(served, tmp_path):
    async with served:
        pass
    served.socket.parent.mkdir(exist_ok=True)
    async with served:
        code, _ = await failure(served.runtime.Version(cri.VersionRequest()))
    assert code is grpc.StatusCode.UNIMPLEMENTED
