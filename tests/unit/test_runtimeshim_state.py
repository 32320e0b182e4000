"""The containers of the OCI command line on disk: ids, records, locks, and what a pid proves."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtimeshim.oci import gate, state
from runtimeshim.oci.state import ContainerError, NotFoundError, Record
from tests.fakes.cgroups import FakeCgroups


def record(**fields: object) -> Record:
    given: dict[str, object] = {
        "id": "c",
        "bundle": "/b",
        "cgroup_path": "/c",
        "rootfs": "/b/rootfs",
        "oci_version": "1.2.0",
        "annotations": {"a": "b"},
        "created": state.now(),
        "owner": 0,
    }
    return Record(**{**given, **fields})  # type: ignore[arg-type]


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("good", ["a", "_", "+x", "-", "A.b-c_d+e", "x" * 1024])
def test_ids(good: str) -> None:
    state.check_id(good)


@pytest.mark.parametrize("bad", ["", ".", "..", ".a", "a/b", "a b", "ä", "a\n", "a\0", "x" * 1025])
def test_what_is_no_id(bad: str) -> None:
    with pytest.raises(ContainerError):
        state.check_id(bad)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    directory = state.make(str(tmp_path / "root"), "c")
    written = record(pid=5, start_time=7)
    directory.save(written)
    directory.save_spec({"x": 1})
    found = directory.record()
    assert {n: getattr(found, n) for n in Record.__slots__} == {
        n: getattr(written, n) for n in Record.__slots__
    }
    assert directory.spec() == {"x": 1}
    assert sorted(os.listdir(directory.path)) == ["config.json", "state.json"]
    assert stat.S_IMODE(os.stat(directory.path).st_mode) == 0o700
    directory.remove()
    directory.close()
    with pytest.raises(NotFoundError):
        state.find(str(tmp_path / "root"), "c")


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    directory = state.make(str(tmp_path), "c")
    Path(directory.path, "state.json").write_text('{"version": 99}')
    with pytest.raises(ContainerError, match="another version"):
        directory.record()
    directory.close()


def test_an_id_is_taken_once(tmp_path: Path) -> None:
    state.make(str(tmp_path), "c").close()
    with pytest.raises(ContainerError, match="already exists"):
        state.make(str(tmp_path), "c")
    assert state.ids(str(tmp_path)) == ["c"]
    assert state.ids(str(tmp_path / "nonesuch")) == []


def test_who_waited_for_a_container_that_was_deleted_learns_it(tmp_path: Path) -> None:
    holder = state.make(str(tmp_path), "c")
    waiter = state.find(str(tmp_path), "c")
    outcome: list[Exception] = []

    def wait() -> None:
        try:
            waiter.lock()
        except NotFoundError as err:
            outcome.append(err)

    thread = threading.Thread(target=wait)
    thread.start()
    holder.remove()
    holder.close()
    thread.join(20)
    assert len(outcome) == 1
    waiter.close()


def test_a_creation_is_under_way_as_long_as_its_lock_is_held(tmp_path: Path) -> None:
    holder = state.make(str(tmp_path), "c")
    other = state.find(str(tmp_path), "c")
    assert other.status(record(), FakeCgroups()) == state.CREATING
    holder.close()
    assert other.status(record(), FakeCgroups()) == state.STOPPED
    other.close()


def test_states_follow_the_process_the_gate_and_the_cgroup(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    known = record()
    known.set_init(child.pid)
    cgroups = FakeCgroups()
    assert state.status(str(tmp_path), known, cgroups) == state.RUNNING
    cgroups.frozen = True
    assert state.status(str(tmp_path), known, cgroups) == state.PAUSED
    held = gate.Gate(str(tmp_path))
    assert state.status(str(tmp_path), known, cgroups) == state.CREATED
    held.close()
    assert state.status(str(tmp_path), known, cgroups) == state.PAUSED
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert state.status(str(tmp_path), known, cgroups) == state.STOPPED
    child.wait()
    assert state.status(str(tmp_path), known, cgroups) == state.STOPPED


def test_a_pid_that_was_given_to_another_is_not_the_init(child: subprocess.Popen[bytes]) -> None:
    known = record()
    known.set_init(child.pid)
    known.start_time -= 1
    assert not known.is_alive()
    with pytest.raises(ContainerError, match="container not running"):
        state.send_signal(known, 9)
    assert child.poll() is None


def test_signals_reach_the_init(child: subprocess.Popen[bytes]) -> None:
    known = record()
    known.set_init(child.pid)
    state.send_signal(known, 15)
    assert child.wait() == -15
    with pytest.raises(ContainerError, match="container not running"):
        state.send_signal(known, 15)


def test_the_description_is_that_of_the_specification() -> None:
    known = record(pid=5)
    described = state.describe(known, state.RUNNING)
    assert (described["pid"], described["annotations"]) == (5, {"a": "b"})
    assert state.describe(known, state.STOPPED)["pid"] == 0
    known.annotations = {}
    assert "annotations" not in state.describe(known, state.RUNNING)


# Waits at a gate, as an init does, and tells of the failure that it is given, if any.
INIT = """
import json, sys
from runtimeshim.oci.gate import Gate
held, failure = Gate(sys.argv[1]), json.loads(sys.argv[2])
held.wait()
if failure is not None:
    held.report(failure)
"""


@pytest.mark.parametrize(
    "failure", [None, {"stage": "exec", "error": "x" * 20000, "kind": "start"}]
)
def test_the_gate_tells_of_success_and_failure(
    tmp_path: Path, failure: dict[str, str] | None
) -> None:
    argv = [sys.executable, "-c", INIT, str(tmp_path), json.dumps(failure)]
    with subprocess.Popen(argv) as init:
        while not gate.is_held(str(tmp_path)):
            assert init.poll() is None
        assert gate.release(str(tmp_path)) == failure
    assert not gate.is_held(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_gate_without_an_init_cannot_be_released(tmp_path: Path) -> None:
    gate.Gate(str(tmp_path)).close()
    assert not gate.is_held(str(tmp_path))
    with pytest.raises(OSError, match="No such device or address"):
        gate.release(str(tmp_path))
