"""The store: disk before memory, names, prefixes, and the table of states."""

import itertools
import os
import signal
import sqlite3

import pytest

from api.cri import api_pb2 as cri
from api.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from criserver.store import containers as containers_module
from criserver.store import database
from criserver.store.containers import (
    NEXT,
    ContainerStore,
    Event,
    State,
    TransitionError,
    check_transition,
    container_name,
)
from criserver.store.database import DatabaseError, open_database
from criserver.store.lock import Lock, LockedError
from criserver.store.sandboxes import SandboxStore, sandbox_name

USER = '{"uid": 0, "gid": 0, "groups": []}'


@pytest.fixture
def connection(tmp_path):
    connection = open_database(tmp_path)
    yield connection
    connection.close()


@pytest.fixture
def sandboxes(connection):
    return SandboxStore(connection)


@pytest.fixture
def containers(connection, sandboxes):
    add_sandbox(sandboxes, "5" * 64)
    return ContainerStore(connection)


def pod(name="pod", attempt=0):
    metadata = cri.PodSandboxMetadata(name=name, namespace="ns", uid="uid", attempt=attempt)
    return cri.PodSandboxConfig(metadata=metadata, labels={"app": name})


def add_sandbox(sandboxes, sandbox_id, name="pod"):
    sandboxes.reserve(sandbox_id, pod(name), "")
    return sandboxes.created(sandbox_id, {"ips": ["10.88.0.2"]}, 7)


def add_container(containers, container_id, name="c_pod_ns_uid_0", created_at=1):
    config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c"))
    containers.reserve(container_id, name, "5" * 64, config)
    return containers.created(container_id, created_at=created_at, pid=42, user=USER)


def test_names_are_those_of_the_cri():
    assert sandbox_name(pod(attempt=3).metadata) == "pod_ns_uid_3"
    metadata = cri.ContainerMetadata(name="web", attempt=2)
    assert container_name(metadata, pod().metadata) == "web_pod_ns_uid_2"


def test_a_sandbox_is_invisible_until_it_is_made(sandboxes):
    sandboxes.reserve("a" * 64, pod(), "")
    assert sandboxes.mirror.made() == []
    assert [sandbox.id for sandbox in sandboxes.mirror.unmade()] == ["a" * 64]
    with pytest.raises(NotFoundError):
        sandboxes.mirror.get("a" * 64)
    sandboxes.created("a" * 64, {}, 1)
    assert sandboxes.mirror.get("a" * 64).state == cri.SANDBOX_READY


def test_a_name_is_reserved_with_the_object_and_freed_with_it(sandboxes):
    sandboxes.reserve("a" * 64, pod(), "")
    with pytest.raises(AlreadyExistsError, match="pod_ns_uid_0 belongs to aaaa"):
        sandboxes.reserve("b" * 64, pod(), "")
    sandboxes.reserve("c" * 64, pod(attempt=1), "")
    sandboxes.remove("a" * 64)
    sandboxes.reserve("b" * 64, pod(), "")


def test_a_stopped_sandbox_keeps_its_first_time(sandboxes):
    add_sandbox(sandboxes, "a" * 64)
    assert sandboxes.stopped("a" * 64, 10).state == cri.SANDBOX_NOTREADY
    assert sandboxes.stopped("a" * 64, 20).stopped_at == 10


def test_what_is_stored_is_there_after_a_restart(connection, sandboxes, containers):
    add_container(containers, "c" * 64, created_at=5)
    containers.started("c" * 64, 6)
    containers.exited("c" * 64, 3, 7, False)
    again = ContainerStore(connection).mirror.get("c" * 64)
    assert again == containers.mirror.get("c" * 64)
    assert (again.state, again.exit_code, again.reason) == (State.EXITED, 3, "Error")
    assert SandboxStore(connection).mirror.get("5" * 64).runtime_values == {"ips": ["10.88.0.2"]}
    assert SandboxStore(connection).mirror.get("5" * 64).message == pod()


def test_lists_are_in_the_order_of_creation_after_a_restart_too(connection, sandboxes):
    for number, letter in enumerate("cab"):
        sandboxes.reserve(letter * 64, pod(letter), "")
        sandboxes.created(letter * 64, {}, number + 1)
    for store in (sandboxes, SandboxStore(connection)):
        assert [sandbox.id[0] for sandbox in store.mirror.made()] == ["c", "a", "b"]


def test_memory_is_not_changed_when_the_disk_refuses(connection, containers):
    add_container(containers, "c" * 64)
    connection.execute("PRAGMA query_only=ON")
    with pytest.raises(sqlite3.OperationalError):
        containers.started("c" * 64, 9)
    with pytest.raises(sqlite3.OperationalError):
        containers.remove("c" * 64)
    assert containers.mirror.get("c" * 64).state is State.CREATED


def test_a_sandbox_with_containers_cannot_be_removed(sandboxes, containers):
    add_container(containers, "c" * 64)
    with pytest.raises(sqlite3.IntegrityError):
        sandboxes.remove("5" * 64)
    assert sandboxes.mirror.get("5" * 64)


def test_ids_are_found_by_unique_prefix(sandboxes):
    add_sandbox(sandboxes, "abc" + "0" * 61, "one")
    add_sandbox(sandboxes, "abd" + "0" * 61, "two")
    assert sandboxes.mirror.get("abc").id == "abc" + "0" * 61
    assert sandboxes.mirror.find("b") is None
    assert sandboxes.mirror.find("abcd") is None
    with pytest.raises(InvalidArgumentError, match="several pod sandbox ids begin with 'ab'"):
        sandboxes.mirror.find("ab")
    with pytest.raises(InvalidArgumentError, match="is empty"):
        sandboxes.mirror.find("")
    sandboxes.remove("abd" + "0" * 61)
    assert sandboxes.mirror.get("ab").id == "abc" + "0" * 61


def test_a_huge_id_is_not_found_with_a_short_message(sandboxes):
    with pytest.raises(NotFoundError) as caught:
        sandboxes.mirror.get("x" * 1_000_000)
    assert len(str(caught.value)) < 200


VALID = {
    (State.CREATED, Event.START): State.RUNNING,
    (State.CREATED, Event.START_FAILED): State.EXITED,
    (State.CREATED, Event.EXIT): State.EXITED,
    (State.CREATED, Event.LOST): State.EXITED,
    (State.RUNNING, Event.EXIT): State.EXITED,
    (State.RUNNING, Event.LOST): State.EXITED,
    (State.EXITED, Event.START): State.EXITED,
    (State.EXITED, Event.START_FAILED): State.EXITED,
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair_of_state_and_event(state, event):
    if (state, event) in VALID:
        assert check_transition(state, event) is VALID[state, event]
    else:
        with pytest.raises(TransitionError, match=f"{state.name} cannot {event.value}"):
            check_transition(state, event)
    assert (state, event) in VALID or (state, event) not in NEXT


def test_the_stores_methods_do_what_the_table_says(containers):
    apply = {
        Event.START: lambda i: containers.started(i, 10),
        Event.START_FAILED: lambda i: containers.start_failed(i, "no such file", 11),
        Event.EXIT: lambda i: containers.exited(i, 0, 12, False),
        Event.LOST: lambda i: containers.lost(i, "gone", 13),
    }
    reach = {State.CREATED: (), State.RUNNING: (Event.START,), State.EXITED: (Event.EXIT,)}
    for number, (state, event) in enumerate(itertools.product(State, Event)):
        container_id = f"{number:064x}"
        add_container(containers, container_id, f"name{number}")
        for step in reach[state]:
            apply[step](container_id)
        if (state, event) in VALID:
            assert apply[event](container_id).state is VALID[state, event]
        elif (state, event) == (State.EXITED, Event.EXIT):  # no news: the record is kept
            assert apply[event](container_id) == containers.mirror.get(container_id)
        else:
            with pytest.raises(TransitionError):
                apply[event](container_id)


@pytest.mark.parametrize(
    ("code", "oom", "reason"),
    [(0, False, "Completed"), (1, False, "Error"), (137, True, "OOMKilled"), (137, False, "Error")],
)
def test_reasons_of_an_exit(containers, code, oom, reason):
    add_container(containers, "c" * 64)
    containers.started("c" * 64, 10)
    container = containers.exited("c" * 64, code, 12, oom)
    assert (container.reason, container.exit_code, container.pid) == (reason, code, 0)
    assert (container.started_at, container.finished_at) == (10, 12)


def test_an_exit_that_overtakes_the_start_keeps_both_times(containers):
    add_container(containers, "c" * 64)
    containers.exited("c" * 64, 0, 12, False)
    container = containers.started("c" * 64, 10)
    assert (container.started_at, container.finished_at, container.state) == (10, 12, State.EXITED)


def test_a_failed_start_and_a_lost_container(containers):
    add_container(containers, "c" * 64, "one")
    failed = containers.start_failed("c" * 64, "exec: no such file", 9)
    assert (failed.exit_code, failed.reason) == (128, "StartError")
    assert failed.message == "exec: no such file"
    add_container(containers, "d" * 64, "two")
    containers.started("d" * 64, 10)
    lost = containers.lost("d" * 64, "the shim died", 11)
    assert (lost.exit_code, lost.reason, lost.finished_at) == (255, "Unknown", 11)


def test_the_default_stop_signal_is_sigterm(containers):
    assert add_container(containers, "c" * 64).stop_signal == signal.SIGTERM
    assert containers_module.UNKNOWN_CODE == 255


def test_the_containers_of_a_sandbox_include_half_made_ones(containers):
    containers.reserve("c" * 64, "one", "5" * 64, cri.ContainerConfig())
    assert [c.id for c in containers.of_sandbox("5" * 64)] == ["c" * 64]
    assert containers.of_sandbox("6" * 64) == []


def test_the_database_of_a_newer_daemon_is_refused(tmp_path):
    connection = open_database(tmp_path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(DatabaseError, match="schema version 99"):
        open_database(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "criserver.db").write_bytes(b"not a database, but long enough to be read" * 50)
    with pytest.raises(DatabaseError, match=r"criserver\.db cannot be used"):
        open_database(tmp_path)


def test_the_boot_id_is_remembered(connection):
    assert database.recorded_boot(connection) is None
    database.record_boot(connection, database.boot_id())
    assert database.recorded_boot(connection) == database.boot_id() != ""


def test_the_database_is_private_and_does_not_wait_for_the_disk(connection, tmp_path):
    assert (tmp_path / "criserver.db").stat().st_mode & 0o777 == 0o600
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (1,)


def test_a_checkpoint_folds_the_log_in(connection, sandboxes, tmp_path):
    add_sandbox(sandboxes, "a" * 64)
    database._checkpoint(tmp_path / "criserver.db")
    with sqlite3.connect(f"file:{tmp_path}/criserver.db?immutable=1", uri=True) as folded:
        assert folded.execute("SELECT id FROM sandboxes").fetchall() == [("a" * 64,)]
    folded.close()


def test_one_daemon_per_directory(tmp_path):
    root, run = tmp_path / "root", tmp_path / "run"
    root.mkdir()
    run.mkdir()
    other = tmp_path / "other"
    other.mkdir()
    held = Lock([root, run])
    with pytest.raises(LockedError, match=rf"pid {os.getpid()}\) works in {run}"):
        Lock([other, run])
    Lock([other]).release()  # what the refused one had locked is free
    held.release()
    Lock([root, run]).release()
