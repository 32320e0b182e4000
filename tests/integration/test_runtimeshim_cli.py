"""The OCI command line: a container's life, run as a person or another program runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import bundles, harness
from tests.integration.oci_cli import CLI, RUNTIMESHIM

SLEEP = ["sleep", "1000"]
# Tells of SIGTERM; `wait` is interrupted by it at once.
TRAP = ["sh", "-c", "trap 'echo got; exit 9' TERM; echo up; sleep 1000 & wait"]


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[CLI]:
    made = CLI(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_run_passes_stdio_and_the_exit_code(cli: CLI) -> None:
    bundle = cli.bundle(["sh", "-c", "cat; echo err >&2; exit 5"])
    done = cli("run", "-b", bundle, "c", input="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (5, "in\n", "err\n")
    assert cli.ok("list", "-q") == ""


def test_run_passes_signals(cli: CLI) -> None:
    process = subprocess.Popen(
        cli.command("run", "-b", cli.bundle(TRAP), "c"), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "got\n"
    assert process.wait() == 9
    process.stdout.close()


def test_run_tells_of_a_death_by_signal(cli: CLI) -> None:
    assert cli("run", "-b", cli.bundle(["sh", "-c", "kill -USR1 $$"]), "c").returncode == 0
    # pid 1 ignores what it has no handler for; a child does not.
    bundle = cli.bundle(["sh", "-c", "sh -c 'kill -USR1 $$'; exit $?"])
    assert cli("run", "-b", bundle, "c").returncode == 128 + signal.SIGUSR1


def test_a_container_of_run_is_there_for_the_other_commands(cli: CLI) -> None:
    process = subprocess.Popen(
        cli.command("run", "-b", cli.bundle(TRAP), "c"), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    assert cli.state()["status"] == "running"
    assert cli("exec", "c", "echo", "there").stdout == "there\n"
    cli.ok("kill", "c")
    assert process.wait() == 9
    process.stdout.close()
    assert "does not exist" in cli("state", "c").stderr


def test_run_detached_returns_with_a_running_container(cli: CLI) -> None:
    cli.launch(cli.bundle(SLEEP), "c", "run", "-d")
    assert cli.state()["status"] == "running"


def test_run_with_keep_leaves_the_container_stopped(cli: CLI) -> None:
    assert cli("run", "--keep", "-b", cli.bundle(["sh", "-c", "exit 3"]), "c").returncode == 3
    assert cli.state()["status"] == "stopped"
    cli.ok("delete", "c")


@pytest.mark.parametrize("verb", ["run", "create"])
@pytest.mark.parametrize(
    ("args", "message"),
    [(["nonesuch"], "executable file not found in $PATH"), ([], "process.args")],
)
def test_what_cannot_start_is_told_and_leaves_nothing(
    cli: CLI, verb: str, args: list[str], message: str
) -> None:
    done = cli(verb, "-b", cli.bundle(args), "c")
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert cli.ok("list", "-q") == ""


async def test_create_leaves_an_init_that_waits_for_start(cli: CLI) -> None:
    output = cli.created(["echo", "ran"])
    state = cli.state()
    assert state["status"] == "created"
    assert output.read_text() == ""
    cli.ok("start", "c")
    await harness.until(lambda: output.read_text() == "ran\n")


async def test_the_states_of_a_container(cli: CLI) -> None:
    cli.created(SLEEP)
    assert cli.state()["status"] == "created"
    cli.ok("start", "c")
    assert cli.state()["status"] == "running"
    cli.ok("pause", "c")
    assert cli.state()["status"] == "paused"
    cli.ok("resume", "c")
    assert cli.state()["status"] == "running"
    cli.ok("kill", "c", "KILL")
    await cli.status("stopped")
    assert cli.state()["pid"] == 0
    cli.ok("delete", "c")
    assert "does not exist" in cli("state", "c").stderr


def test_state_is_that_of_the_specification(cli: CLI) -> None:
    spec = cli.spec(SLEEP) | {"annotations": {"a": "b"}}
    bundle = cli.write(spec)
    cli.launch(bundle)
    state = cli.state()
    assert Path(f"/proc/{state.pop('pid')}/comm").read_text() == "runtimeshim\n"
    assert state.pop("created").endswith("Z")
    assert state == {
        "ociVersion": spec["ociVersion"],
        "id": "c",
        "status": "created",
        "bundle": str(bundle),
        "rootfs": str(cli.layer),
        "owner": "",
        "annotations": {"a": "b"},
    }


async def test_a_created_container_that_is_killed_is_stopped(cli: CLI) -> None:
    cli.created(SLEEP)
    cli.ok("kill", "c", "9")
    await cli.status("stopped")
    assert "cannot start a container that has stopped" in cli("start", "c").stderr


def test_start_is_for_created_containers_only(cli: CLI) -> None:
    cli.started(SLEEP)
    done = cli("start", "c")
    assert done.returncode == 1
    assert "cannot start an already running container" in done.stderr


def test_two_starts_at_once_start_it_once(cli: CLI) -> None:
    cli.created(["sleep", "1000"])
    starts = [
        subprocess.Popen(cli.command("start", "c"), stderr=subprocess.DEVNULL) for _ in range(4)
    ]
    assert sorted(start.wait() for start in starts) == [0, 1, 1, 1]
    assert cli.state()["status"] == "running"


def test_an_id_is_used_once(cli: CLI) -> None:
    cli.created(SLEEP)
    done = cli("create", "-b", cli.directory / "bundle", "c")
    assert done.returncode == 1
    assert "already exists" in done.stderr
    assert cli.state()["status"] == "created"


def test_a_cgroup_with_processes_in_it_is_nobody_elses(cli: CLI) -> None:
    cli.started(SLEEP)
    done = cli("create", "-b", cli.directory / "bundle", "other")
    assert done.returncode == 1
    assert "cgroup is not empty" in done.stderr
    assert cli.state()["status"] == "running"


def test_delete_is_for_containers_that_do_not_run(cli: CLI) -> None:
    cli.started(SLEEP)
    done = cli("delete", "c")
    assert done.returncode == 1
    assert "cannot delete container c that is not stopped: running" in done.stderr
    cli.ok("delete", "-f", "c")
    cli.ok("delete", "--force", "c")  # it is not there any more, as was asked for
    assert "does not exist" in cli("delete", "c").stderr


def test_delete_ends_a_created_container(cli: CLI) -> None:
    cli.created(SLEEP)
    pid = cli.state()["pid"]
    cli.ok("delete", "c")
    assert harness.cgroup_dirs(cli.cgroup_of("c")) == []
    assert not is_running(pid)


def test_delete_by_force_ends_a_paused_container(cli: CLI) -> None:
    cli.started(SLEEP)
    cli.ok("pause", "c")
    cli.ok("delete", "-f", "c")


def test_a_creation_that_was_killed_can_be_deleted(cli: CLI) -> None:
    (cli.root / "c").mkdir(parents=True)  # all that there is before anything else is made
    assert "does not exist" in cli("state", "c").stderr
    cli.ok("delete", "-f", "c")
    assert not (cli.root / "c").exists()


def test_a_pid_that_is_another_process_now_is_not_the_container(cli: CLI) -> None:
    cli.started(SLEEP)
    path = cli.root / "c/state.json"
    record = json.loads(path.read_text())
    ours = subprocess.Popen(["sleep", "1000"])
    try:
        path.write_text(json.dumps(record | {"pid": ours.pid}))
        assert cli.state()["status"] == "stopped"
        assert "container not running" in cli("kill", "c", "KILL").stderr
        assert ours.poll() is None
    finally:
        ours.kill()
        ours.wait()
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("given", ["USR1", "SIGUSR1", "usr1", str(int(signal.SIGUSR1))])
async def test_kill_takes_names_and_numbers(cli: CLI, given: str) -> None:
    script = "trap 'echo got; exit' USR1; echo up; sleep 1000 & wait"
    output = cli.started(["sh", "-c", script])
    await harness.until(lambda: output.read_text() == "up\n")
    cli.ok("kill", "c", given)
    await harness.until(lambda: output.read_text() == "up\ngot\n")


async def test_kill_all_reaches_every_process(cli: CLI) -> None:
    output = cli.started(
        ["sh", "-c", "sh -c 'trap \"echo child\" USR1; echo up; sleep 1000 & wait'"]
    )
    await harness.until(lambda: output.read_text() == "up\n")
    cli.ok("kill", "--all", "c", "USR1")
    await harness.until(lambda: "child\n" in output.read_text())


async def test_killing_the_init_of_a_shared_pid_namespace_ends_the_others(cli: CLI) -> None:
    spec = cli.spec(["sh", "-c", "sleep 1000 & echo $!; exec sleep 1000"])
    spec["linux"]["namespaces"] = [
        each for each in spec["linux"]["namespaces"] if each["type"] != "pid"
    ]
    output = cli.launch(cli.write(spec), "c", "run", "-d")
    await harness.until(lambda: output.read_text() != "")
    child = int(output.read_text())
    assert is_running(child)
    cli.ok("kill", "c", "KILL")
    await harness.until(lambda: not is_running(child))


def test_list_shows_all_containers(cli: CLI) -> None:
    cli.created(SLEEP, "one")
    spec = cli.spec(SLEEP)
    spec["linux"]["cgroupsPath"] = cli.cgroup_of("two")
    cli.launch(cli.write(spec), "two", "run", "-d")
    assert cli.ok("list", "--quiet") == "one\ntwo\n"
    found = json.loads(cli.ok("list", "-f", "json"))
    assert [(each["id"], each["status"]) for each in found] == [
        ("one", "created"),
        ("two", "running"),
    ]
    header, *lines = (line.split() for line in cli.ok("list").splitlines())
    assert header == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert [line[0] for line in lines] == ["one", "two"]
    assert lines[0][5] == "root"


def test_ps_shows_the_processes_of_the_container_only(cli: CLI) -> None:
    cli.started(SLEEP)
    pid = cli.state()["pid"]
    assert json.loads(cli.ok("ps", "-f", "json", "c")) == [pid]
    header, *lines = cli.ok("ps", "c").splitlines()
    assert header.split()[:2] == ["UID", "PID"]
    assert [line.split()[1] for line in lines] == [str(pid)]
    assert cli.ok("ps", "c", "-eo", "pid,comm").split() == ["PID", "COMMAND", str(pid), "sleep"]


def test_pause_stops_every_process(cli: CLI) -> None:
    cli.started(["sh", "-c", "while :; do echo x; done"])
    output = cli.directory / "c.out"
    cli.ok("pause", "c")
    size = output.stat().st_size
    assert "cannot exec in a paused container" in cli("exec", "c", "true").stderr
    assert "container not running or created: paused" in cli("pause", "c").stderr
    assert output.stat().st_size == size
    cli.ok("resume", "c")
    assert "container not paused" in cli("resume", "c").stderr


def test_update_changes_limits(cli: CLI) -> None:
    cli.started(SLEEP)
    cli.ok("update", "--memory", str(64 << 20), "--pids-limit=77", "c")
    given = {"memory": {"limit": 96 << 20}, "cpu": {"shares": 512}}
    cli.ok("update", "--resources=-", "c", input=json.dumps(given))
    stats = json.loads(cli.ok("events", "--stats", "c"))
    assert (stats["type"], stats["id"]) == ("stats", "c")
    assert stats["data"]["memory"]["usage"]["limit"] == 96 << 20
    assert stats["data"]["pids"] == {"current": 1, "limit": 77}
    assert stats["data"]["cpu"]["usage"]["total"] > 0


def test_update_says_what_is_wrong(cli: CLI) -> None:
    cli.started(SLEEP)
    for arguments in (["--resources=-"], ["--memory", "much"], ["--l3-cache-schema", "L3:0=f"]):
        done = cli("update", *arguments, "c", input="{")
        assert done.returncode == 1
        assert "update failed: " in done.stderr


def test_events_tell_of_an_oom_kill(cli: CLI) -> None:
    # `head` of a device without lines holds all of it in memory.
    spec = cli.spec(["sh", "-c", "read go; tail -c 100m /dev/zero; sleep 1000"])
    spec["linux"]["resources"] = {"memory": {"limit": 16 << 20}}
    process = subprocess.Popen(
        cli.command("run", "-b", cli.write(spec), "c"), stdin=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    while cli("state", "c").returncode:  # until it has been created
        assert process.poll() is None
    events = subprocess.Popen(
        cli.command("events", "--interval", "50ms", "c"), stdout=subprocess.PIPE, text=True
    )
    assert events.stdout is not None
    assert json.loads(events.stdout.readline())["type"] == "stats"
    process.stdin.write("\n")
    process.stdin.close()
    kinds = (json.loads(line)["type"] for line in events.stdout)
    assert next(kind for kind in kinds if kind != "stats") == "oom"
    cli.ok("kill", "c", "KILL")
    assert process.wait() == 128 + signal.SIGKILL
    assert events.wait() == 0  # with the container
    events.stdout.close()


def test_a_spec_of_its_own_making_runs(cli: CLI) -> None:
    bundle = cli.directory / "own"
    bundles.make_layer(bundle / "rootfs")
    cli.ok("spec", "-b", bundle)
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"]["args"] = ["sh", "-c", "hostname; grep -c . /proc/self/mountinfo"]
    spec["linux"]["cgroupsPath"] = cli.cgroup_of("c")
    (bundle / "config.json").write_text(json.dumps(spec))
    output = cli.ok("run", "-b", bundle, "c")
    assert output.splitlines()[0] == "runtimeshim"
    assert cli("spec", "-b", bundle).returncode == 1  # it does not overwrite


def test_features_name_what_is_there() -> None:
    done = subprocess.run([RUNTIMESHIM, "features"], capture_output=True, text=True, check=True)
    features = json.loads(done.stdout)
    assert "CAP_SYS_ADMIN" in features["linux"]["capabilities"]
    # What is implemented, whichever version this machine has, and whether or not under systemd.
    assert features["linux"]["cgroup"] == {
        "v1": True, "v2": True, "systemd": True, "systemdUser": False, "rdma": True,
    }  # fmt: skip
    assert "rro" in features["mountOptions"]


def is_running(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_container_without_a_cgroup_path_has_its_own(cli: CLI) -> None:
    spec = cli.spec(["cat", "/proc/self/cgroup"])
    del spec["linux"]["cgroupsPath"]
    spec["linux"]["namespaces"] = [
        each for each in spec["linux"]["namespaces"] if each["type"] != "cgroup"
    ]
    name = f"crtest-{os.getpid()}"
    expected = f"/runtimeshim-{name}"
    if harness.CGROUP_DRIVER == "systemd":
        expected = f"/system.slice/runtimeshim-{name}.scope"
    assert f":{expected}\n" in cli.ok("run", "-b", cli.write(spec), name)
    assert harness.cgroup_dirs(expected) == []


def test_with_systemd_cgroups_the_path_has_to_be_a_units(cli: CLI) -> None:
    """What systemd makes of them: these tests with CRISERVER_TEST_CGROUP_DRIVER=systemd."""
    spec = cli.spec(["true"])
    spec["linux"]["cgroupsPath"] = "/crtest"
    done = cli("--systemd-cgroup", "run", "-b", cli.write(spec), "c")
    assert done.returncode == 1
    assert "slice:prefix:name" in done.stderr
