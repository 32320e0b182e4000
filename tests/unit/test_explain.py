"""The history of operations: what is kept, counted, bounded and forgotten; and how it is shown."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from api.errors import InternalError
from api.stages import note, observe, operation, stage
from criserver.cli import timeline_svg, timeline_text
from criserver.explain import history as history_module
from criserver.explain.explainer import Explainer
from criserver.explain.history import KEPT_OPERATIONS, History
from criserver.explain.subjects import Subject
from criserver.operations import Operations
from runtimeshim.linux import process_state


class Alive:
    """The pods and containers that are there: none, unless a test says so."""

    def __init__(self):
        self.keys = set()

    def find(self, key):
        return object() if key in self.keys else None

    def all(self):
        return []


@pytest.fixture
def database(tmp_path):
    connection = sqlite3.connect(tmp_path / "db", isolation_level="IMMEDIATE")
    yield connection
    connection.close()


@pytest.fixture
async def history(database):
    made = History(database, Alive())
    stop = observe(made)
    yield made
    stop()
    made.close()


def pull(name="app:1", error=None):
    """An operation on an image, which needs no record of anything else."""
    try:
        with operation("PullImage", name), stage("resolve"):
            note("asked")
            if error:
                raise error
    except InternalError:
        pass


async def test_what_has_ended_is_written_with_its_stages_and_events(history):
    pull()
    (record,) = history.operations("app:1")
    assert (record["name"], record["outcome"], record["times"]) == ("PullImage", "ok", 1)
    assert 0 < record["duration"] < 10**9
    (resolve,) = record["stages"]
    assert (resolve["name"], resolve["depth"]) == ("resolve", 0)
    assert [event["text"] for event in resolve["events"]] == ["asked"]


async def test_nothing_is_written_before_there_is_something_to_write(history, database):
    before = database.total_changes
    history.flush()
    assert database.total_changes == before
    with operation("PullImage", "app:1"):
        history.flush()
    assert database.total_changes == before


async def test_it_is_written_a_moment_later_without_being_asked(history, database, monkeypatch):
    monkeypatch.setattr(history_module, "FLUSH_SECONDS", 0.01)
    pull()
    while not database.execute("SELECT * FROM history_operations").fetchall():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_the_same_failure_in_a_row_is_counted(history):
    pull(error=InternalError("503"))
    first = history.operations("app:1")[0]["started_at"]
    for _ in range(3):
        pull(error=InternalError("503"))
    pull(error=InternalError("404"))
    records = history.operations("app:1")
    assert [(record["cause"], record["times"]) for record in records] == [("503", 4), ("404", 1)]
    assert records[0]["first_at"] == first < records[0]["started_at"]


async def test_the_last_operations_of_an_object_are_kept(history):
    for number in range(KEPT_OPERATIONS + 5):
        pull(error=InternalError(str(number)))
    causes = [record["cause"] for record in history.operations("app:1")]
    assert causes == [str(number) for number in range(5, KEPT_OPERATIONS + 5)]


async def test_what_is_gone_is_forgotten_in_the_end_and_what_is_there_is_not(history, monkeypatch):
    monkeypatch.setattr(history_module, "PRUNE_SECONDS", -1)
    monkeypatch.setattr(history_module, "KEPT_SUBJECTS", 2)
    history.alive.keys = {"app:0"}
    for number in range(5):
        history.pulled_for(f"app:{number}", "pod")
        if number == 0:
            with operation("PullImage", "app:0"):
                pass
        else:
            pull(f"app:{number}")
        history.flush()
    assert {subject.key for subject in history.subjects()} == {"app:0", "app:3", "app:4"}
    assert history.operations("app:1") == []
    assert history.images_of("pod") == ["app:0", "app:3", "app:4"]


async def test_with_a_full_disk_the_history_is_told_from_memory(history, database, caplog):
    database.execute("PRAGMA query_only=ON")
    pull(error=InternalError("no space left"))
    (record,) = history.operations("app:1")
    assert record["cause"] == "no space left"
    assert "cannot be written" in caplog.text
    assert [subject.key for subject in history.subjects()] == ["app:1"]
    database.execute("PRAGMA query_only=OFF")
    assert len(history.operations("app:1")) == 1


async def test_a_success_makes_the_failure_before_it_good(history):
    explainer = Explainer(history, Operations(), str)
    pull(error=InternalError("503"))
    pull(error=InternalError("503"))
    found = await explainer.explain("app:1")
    (trouble,) = found["troubles"]
    assert (trouble["cause"], trouble["times"]) == ("503", 2)
    pull()
    assert (await explainer.explain("app:1"))["troubles"] == []


async def test_where_several_tasks_of_an_operation_wait_all_are_named(history):
    explainer = Explainer(history, Operations(), str)

    async def layer(digest, gate):
        with stage("layer", digest):
            await gate.wait()

    gate = asyncio.Event()

    async def both():
        with operation("PullImage", "app:1"), stage("layers"):
            await asyncio.gather(layer("sha256:1", gate), layer("sha256:2", gate))

    task = asyncio.create_task(both())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    found = await explainer.explain("app:1")
    gate.set()
    await task
    assert [(wait["stage"], wait["detail"]) for wait in found["waiting"]] == [
        ("layers > layer", "sha256:1"),
        ("layers > layer", "sha256:2"),
    ]


@pytest.mark.parametrize("reference", ["abc1", "abc123", "web", "pod/web", "ns/pod/web"])
def test_a_container_has_these_names(reference):
    assert Subject("abc123", "container", "web", "ns", "pod", "s").is_called(reference)


@pytest.mark.parametrize("reference", ["bc123", "we", "ns/web", "pod", "ns/pod"])
def test_a_container_has_no_other_names(reference):
    assert not Subject("abc123", "container", "web", "ns", "pod", "s").is_called(reference)


async def test_what_is_printed_commands_no_terminal_and_breaks_no_picture(history):
    explainer = Explainer(history, Operations(), str)
    pull(error=InternalError("\x1b[31mred\nline <&> " + "long " * 300))
    found = await explainer.explain("app:1")
    text = timeline_text.render(found)
    assert "\x1b" not in text
    assert "?[31mred line <&>" in text
    picture = timeline_svg.render(found)
    assert "\x1b" not in picture
    assert "red line &lt;&amp;&gt;" in picture


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0 us"),
        (1500, "2 us"),
        (1_234_567, "1.23 ms"),
        (98_765_432, "98.8 ms"),
        (12e9, "12.0 s"),
    ],
)
def test_durations_have_three_digits(nanoseconds, text):
    assert timeline_text.duration(nanoseconds) == text


# -- processes --------------------------------------------------------------------------------


@pytest.fixture
def ignoring():
    """A process that ignores SIGTERM, blocks SIGINT and has a handler for SIGUSR1."""
    script = (
        "import signal, sys\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # which nohup(1) has ignored
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: None)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        yield process.pid
        process.kill()


def test_a_process_is_described_by_what_it_does_and_disregards(ignoring):
    while (state := process_state.look(ignoring)).state != "S":
        time.sleep(0.01)
    assert str(state).startswith(f"process {ignoring} ({sys.executable} -c import signal, sys?")
    assert "is sleeping (S)" in str(state)
    assert state.disregards(signal.SIGTERM) == "it ignores SIGTERM"
    assert state.disregards(signal.SIGINT) == "it blocks SIGINT"
    assert state.disregards(signal.SIGUSR1).startswith("it has a handler for SIGUSR1")
    assert state.disregards(signal.SIGHUP) == ""
    assert ignoring in process_state.descendants(os.getpid())
    assert process_state.parent(ignoring) == os.getpid()


def test_a_process_that_has_ended_is_nothing():
    with subprocess.Popen(["/bin/true"]) as process:
        process.wait()
    assert process_state.look(process.pid) is None
    assert process_state.look_at([process.pid]) == []
    assert process_state.parent(process.pid) == 0
