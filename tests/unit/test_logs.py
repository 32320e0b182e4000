"""The log: levels that change at run time, JSON with fields, and what an RPC's line says."""

from __future__ import annotations

import io
import json
import logging
import sqlite3
from collections.abc import Iterator

import pytest

from api.cri import api_pb2 as cri
from criserver import logs
from criserver.access_log import AccessLog
from criserver.rpc_subject import MAX_ID, MAX_NAME, Subjects
from criserver.rpcs import Call, tell_began, tell_ended
from criserver.store.containers import ContainerStore
from criserver.store.sandboxes import SandboxStore

POD = cri.PodSandboxMetadata(name="web", namespace="prod", uid="u1")
SANDBOX = "5" * 64
CONTAINER = "c" * 64


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield root
    root.setLevel(level)
    for handler in [each for each in root.handlers if each not in handlers]:
        root.removeHandler(handler)


@pytest.fixture
def stores() -> Iterator[tuple[SandboxStore, ContainerStore]]:
    """A pod prod/web with a container "app"."""
    connection = sqlite3.connect(":memory:", isolation_level="IMMEDIATE")
    sandboxes, containers = SandboxStore(connection), ContainerStore(connection)
    sandboxes.reserve(SANDBOX, cri.PodSandboxConfig(metadata=POD), "")
    sandboxes.created(SANDBOX, {}, 1)
    config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="app"))
    containers.reserve(CONTAINER, "app_web", SANDBOX, config)
    containers.created(CONTAINER, image_id="i", created_at=2, pid=9)
    yield sandboxes, containers
    connection.close()


def json_line(stream: io.StringIO) -> dict[str, object]:
    made: dict[str, object] = json.loads(stream.getvalue())
    return made


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the logger "criserver.rpc" writes as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JSONFormatter())
    logger = logging.getLogger("criserver.rpc")
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    yield stream
    logger.setLevel(before)
    logger.removeHandler(handler)


def test_the_level_changes_at_run_time(root_logger, capsys):
    logs.set_up("error", "plain")
    logging.getLogger("criserver.x").info("before")
    logs.set_level("info")
    logging.getLogger("criserver.x").info("after")
    logging.getLogger("asyncio").info("every system call")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" INFO ")[2] for line in lines] == ["criserver.x: after"]


def test_json_is_one_object_per_line_whatever_is_logged(root_logger, capsys):
    logs.set_up("info", "json")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("criserver.x").exception('a "quoted" %s\n', "ü")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    told = json.loads(lines[0])
    assert (told["level"], told["logger"]) == ("error", "criserver.x")
    assert told["message"] == 'a "quoted" ü\n'
    assert told["traceback"].endswith("ValueError: two\nlines")
    assert told["time"].endswith("Z")


def run(observer: AccessLog, request: object, response: object, code: str = "OK") -> Call:
    call = Call("/runtime.v1.RuntimeService/" + type(request).__name__[:-7], request, None)
    tell_began([observer], call)
    call.response = response
    call.end(code, "" if code == "OK" else "why")
    tell_ended([observer], call)
    return call


def test_an_operations_line_has_the_pod_and_the_ids_that_the_request_lacks(stores, written):
    sandboxes, containers = stores
    observer = AccessLog(Subjects(sandboxes.mirror, containers.mirror))
    run(
        observer,
        cri.StartContainerRequest(container_id=CONTAINER[:8]),
        cri.StartContainerResponse(),
        "INTERNAL",
    )
    told = json_line(written)
    assert told.pop("duration_ms") >= 0
    assert str(told.pop("message")).startswith("StartContainer pod=prod/web container='app' ")
    del told["time"]
    assert told == {
        "level": "warning",
        "logger": "criserver.rpc",
        "method": "StartContainer",
        "namespace": "prod",
        "pod": "web",
        "pod_uid": "u1",
        "container": "app",
        "pod_sandbox_id": SANDBOX,
        "container_id": CONTAINER,
        "code": "INTERNAL",
        "error": "why",
    }


def test_what_is_removed_is_named_all_the_same(stores, written):
    sandboxes, containers = stores
    observer = AccessLog(Subjects(sandboxes.mirror, containers.mirror))
    request = cri.RemoveContainerRequest(container_id=CONTAINER)
    call = Call("/runtime.v1.RuntimeService/RemoveContainer", request, None)
    tell_began([observer], call)
    containers.remove(CONTAINER)
    call.end("OK")
    tell_ended([observer], call)
    told = json_line(written)
    assert (told["pod"], told["container"], told["code"]) == ("web", "app", "OK")


def test_a_creation_is_named_by_its_request_and_its_answer(stores, written):
    sandboxes, containers = stores
    request = cri.CreateContainerRequest(
        pod_sandbox_id=SANDBOX,
        config=cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name="new"), image=cri.ImageSpec(image="busybox")
        ),
    )
    observer = AccessLog(Subjects(sandboxes.mirror, containers.mirror))
    run(observer, request, cri.CreateContainerResponse(container_id="d" * 64))
    told = json_line(written)
    assert [told[name] for name in ("pod", "container", "container_id", "image")] == [
        "web",
        "new",
        "d" * 64,
        "busybox",
    ]


def test_what_is_no_id_is_cut_and_no_error(stores):
    sandboxes, containers = stores
    subjects = Subjects(sandboxes.mirror, containers.mirror)
    subject = subjects.of(cri.StartContainerRequest(container_id="x" * 100_000))
    assert len(subject.container_id) == MAX_ID
    image = cri.ImageSpec(image="y" * 100_000)
    assert len(subjects.of(cri.PullImageRequest(image=image)).image) == MAX_NAME
    assert list(subjects.of(cri.StartContainerRequest()).present()) == []


def test_an_observer_that_fails_does_not_fail_the_rpc(caplog):
    class Broken:
        def began(self, call):
            raise ZeroDivisionError

        def ended(self, call):
            raise ZeroDivisionError

    call = Call("/x/Version", cri.VersionRequest(), None)
    tell_began([Broken()], call)
    call.end("OK")
    tell_ended([Broken()], call)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
