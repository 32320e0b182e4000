"""Runtime handlers that are OCI binaries: Debian's runc under our shim, by its command line."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from api.cri import api_pb2 as cri
from runtimeshim import exit_record
from runtimeshim.client import CreateError, OCIRuntime, Shim, StartError, read_to_end
from tests.integration import harness, leaks
from tests.integration.daemon import RPC_SECONDS, Daemon, wait_for
from tests.integration.pods import Pods, refused
from tests.integration.registry import Registry
from tests.integration.test_adoption import kill_spawner, killed, shim_pid

pytestmark = pytest.mark.integration

PATH = "/usr/sbin/runc"
RUNC = OCIRuntime("runc", PATH)
SLEEP = ["sleep", "1000"]


async def start(rt: harness.Runtime, args: list[str], **options: Any) -> Shim:
    return await rt.start(rt.spec(args), runtime=RUNC, **options)


async def run_exec(rt: harness.Runtime, shim: Shim, args: list[str]) -> tuple[int, str]:
    """Exec, and return its exit code and output."""
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read, False)
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        started = await shim.exec(rt.spec(args)["process"], (null, write, write))
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
        os.close(null)
    output = bytearray()
    await read_to_end(read, output, 1 << 20)
    os.close(read)
    return await started.wait(), output.decode()


def bundle(rt: harness.Runtime) -> Path:
    return rt.run_dir / "containers/c"


async def test_a_container_lives_by_the_binary_from_create_to_delete(rt: harness.Runtime) -> None:
    shim = await rt.create(rt.spec(["sh", "-c", "echo out; echo err >&2; exit 7"]), runtime=RUNC)
    state = json.loads((bundle(rt) / "runtime/c/state.json").read_text())
    assert state["init_process_pid"] == shim.pid  # runc made it
    # Its root is nobody else's.
    assert not [mount for mount in leaks.mounts() if str(rt.directory) in mount]
    await shim.start()
    record = await shim.wait()
    assert (record.exit_code, record.oom_killed) == (7, False)
    lines = [line.split(" ", 3)[1:] for line in rt.log("c").read_text().splitlines()]
    assert sorted(lines) == [["stderr", "F", "err"], ["stdout", "F", "out"]]
    assert not (bundle(rt) / "runtime/c").exists()
    assert harness.cgroup_dirs(rt.cgroup_of("c")) == []
    assert shim.timings.keys() >= {"rootfs", "create", "total"}


async def test_an_image_volume_is_mounted_for_it(rt: harness.Runtime) -> None:
    layers = [rt.directory / name for name in ("top", "base")]
    for layer in layers:
        layer.mkdir()
        (layer / layer.name).write_text(layer.name)
    spec = rt.spec(["sh", "-c", "cat /volume/*; touch /volume/x 2>&1 || exit 7"])
    options = [*(f"lowerdir+={layer}" for layer in layers), "ro", "nodev"]
    spec["mounts"].append(
        {"destination": "/volume", "type": "overlay", "source": "image", "options": options}
    )
    shim = await rt.start(spec, runtime=RUNC)
    assert (await shim.wait()).exit_code == 7
    assert "basetop" in rt.output()
    assert "Read-only" in rt.output()
    assert not [mount for mount in leaks.mounts() if str(rt.directory) in mount]


async def test_signals_reach_it(rt: harness.Runtime) -> None:
    shim = await start(
        rt, ["sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.02; done"]
    )
    await harness.until(lambda: "up" in rt.output())
    await shim.kill(signal.SIGTERM)
    assert (await shim.wait()).exit_code == 5
    await shim.kill(signal.SIGTERM)  # one that has ended is no error


async def test_exec_has_exit_code_output_and_timings(rt: harness.Runtime) -> None:
    shim = await start(rt, SLEEP)
    assert await run_exec(rt, shim, ["sh", "-c", "hostname; exit 3"]) == (3, "inside\n")
    assert await run_exec(rt, shim, ["true"]) == (0, "")
    large = "x" * 120_000
    arguments = ["sh", "-c", 'echo "$#"', "sh", large, large, large]
    assert await run_exec(rt, shim, arguments) == (0, "3\n")
    left = {path.name for path in bundle(rt).iterdir()}
    assert not {name for name in left if name.startswith("exec-")}


async def test_an_exec_that_is_killed_takes_along_what_it_started(rt: harness.Runtime) -> None:
    shim = await start(rt, SLEEP)
    process = rt.spec(["sh", "-c", "setsid sleep 997 & wait"])["process"]
    null = os.open("/dev/null", os.O_RDWR)
    started = await shim.exec(process, (null, null, null))
    os.close(null)
    await harness.until(lambda: len(below(started.pid)) == 1)
    children = below(started.pid)
    await started.kill(signal.SIGKILL)
    assert await started.wait() == 137
    # Of a zombie, which pid 1 of this container does not reap, nothing is left to read.
    await harness.until(lambda: not any(leaks.read(Path(f"/proc/{n}/cmdline")) for n in children))


def below(pid: int) -> list[int]:
    return [int(n) for n in leaks.read(Path(f"/proc/{pid}/task/{pid}/children")).split()]


async def test_a_program_that_is_not_there_is_told_in_the_binarys_words(
    rt: harness.Runtime,
) -> None:
    with pytest.raises(CreateError, match=rf"'runc': {PATH} create: .*\"nonesuch\".*not found"):
        await rt.create(rt.spec(["nonesuch"]), runtime=RUNC)
    assert harness.cgroup_dirs(rt.cgroup_of("c")) == []
    shim = await rt.start(rt.spec(SLEEP, "d"), "d", runtime=RUNC)
    with pytest.raises(StartError, match=rf"'runc': {PATH} exec: .*\"nonesuch\".*not found"):
        await run_exec(rt, shim, ["nonesuch"])


async def test_a_binary_that_fails_is_named(rt: harness.Runtime, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho it is broken >&2\nexit 9\n")
    broken.chmod(0o755)
    with pytest.raises(CreateError, match=f"'mine': {broken} create: it is broken"):
        await rt.create(rt.spec(SLEEP), runtime=OCIRuntime("mine", str(broken)))
    with pytest.raises(CreateError, match="'gone': /none create: No such file"):
        await rt.create(rt.spec(SLEEP, "d"), "d", runtime=OCIRuntime("gone", "/none"))


async def test_terminals_of_container_and_exec(rt: harness.Runtime) -> None:
    spec = rt.spec(["sh", "-c", "tty; read x; stty size; echo got $x; sleep 1000"], terminal=True)
    shim = await rt.create(spec, runtime=RUNC, stdin=True)
    read, write = os.pipe()
    await shim.attach(stdin=read)
    os.close(read)
    await shim.start()
    await shim.resize(99, 33)
    os.write(write, b"typed\n")
    os.close(write)
    await harness.until(lambda: "got typed" in rt.output())
    assert "/dev/pts/0" in rt.output()
    assert "33 99" in rt.output()
    process = rt.spec(["sh", "-c", "stty size; tty; exit 4"], terminal=True)["process"]
    started = await shim.exec(process, None)
    assert started.terminal is not None
    os.set_blocking(started.terminal, False)
    output = bytearray()
    await read_to_end(started.terminal, output, 1 << 20)
    os.close(started.terminal)
    assert await started.wait() == 4
    assert b"/dev/pts/" in output


async def test_a_container_that_runs_out_of_memory_is_oom_killed(rt: harness.Runtime) -> None:
    spec = rt.spec(["sh", "-c", "head -c 200000000 /dev/zero | tail"])
    spec["linux"]["resources"] = {"memory": {"limit": 32 << 20}}
    shim = await rt.start(spec, runtime=RUNC)
    assert (await shim.wait()).oom_killed


async def test_a_killed_shim_is_replaced(rt: harness.Runtime) -> None:
    script = "read x; echo got $x; read x; exit 6"
    shim = await start(rt, ["sh", "-c", script], stdin=True)
    adopted = await killed(rt, shim)
    assert adopted.pid == shim.pid
    read, write = os.pipe()
    await adopted.attach(stdin=read)
    os.close(read)
    os.write(write, b"it\n")
    await harness.until(lambda: "got it" in rt.output())
    assert await run_exec(rt, adopted, ["sh", "-c", "exit 2"]) == (2, "")
    await kill_spawner(rt)
    os.write(write, b"\n")
    assert (await adopted.wait()).exit_code == 6
    os.close(write)
    assert not (bundle(rt) / "runtime/c").exists()


async def test_a_killed_shim_leaves_a_created_container_that_can_be_started(
    rt: harness.Runtime,
) -> None:
    shim = await rt.create(rt.spec(["sh", "-c", "echo hello; exit 4"]), runtime=RUNC)
    adopted = await killed(rt, shim)
    await adopted.start()
    assert (await adopted.wait()).exit_code == 4
    assert rt.output() == "hello\n"


async def test_an_end_at_the_same_moment_is_not_lost(rt: harness.Runtime) -> None:
    shim = await start(rt, SLEEP)
    pid = shim_pid(shim)
    os.kill(pid, signal.SIGSTOP)
    os.kill(shim.pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    await harness.until(lambda: exit_record.read(shim.bundle) is not None)
    record = exit_record.read(shim.bundle)
    assert record is not None
    assert record.exit_code == 137


@pytest.fixture
def pods(daemon: Daemon, registry: Registry) -> Pods:
    daemon.stop()
    with daemon.config.open("a") as file:
        file.write(f'[runtimes.runc]\npath = "{PATH}"\n')
    daemon.start()
    made = Pods(daemon)
    made.pull(registry)
    return made


def test_the_runtime_handler_of_a_pod_chooses(pods: Pods) -> None:
    before = pods.remains()
    said = refused("INVALID_ARGUMENT", pods.run_pod, handler="crun")
    assert "'crun' is not configured; known: 'runtimeshim', 'runc'" in said
    status = pods.daemon.runtime.Status(cri.StatusRequest(), timeout=RPC_SECONDS)
    handlers = {handler.name: handler.features for handler in status.runtime_handlers}
    assert handlers.keys() == {"", "runtimeshim", "runc"}
    assert handlers["runc"].recursive_read_only_mounts  # runc 1.1 and later say so
    assert not handlers["runc"].user_namespaces
    pod = pods.run_pod(handler="runc")
    assert pods.pod_status(pod).runtime_handler == "runc"
    container = pods.run(
        pod, "sh", "-c", "echo up; trap 'exit 8' TERM; while :; do sleep 0.1; done"
    )
    made = pods.daemon.run_dir / "containers" / container / "runtime" / container
    assert (made / "state.json").exists()
    assert pods.exec(container, "sh", "-c", "echo $((6*7)); exit 5").stdout == b"42\n"
    said = refused("INVALID_ARGUMENT", pods.exec, container, "nonesuch")
    assert "runtime handler 'runc'" in said
    wait_for(lambda: pods.output(container) == ["up"], "the trap to be set")
    pods.daemon.kill9()
    pods.daemon.start()
    assert pods.status(container).state == cri.CONTAINER_RUNNING
    assert pods.exec(container, "echo", "still").stdout == b"still\n"
    pods.stop(container, 60)
    assert pods.exited(container).exit_code == 8
    pods.remove(container)
    pods.stop_pod(pod)
    pods.remove_pod(pod)
    pods.assert_remains(before)


def test_a_user_namespace_is_refused_to_a_pod_of_an_oci_binary(pods: Pods) -> None:
    wanted = cri.UserNamespace(mode=cri.POD)
    options = cri.NamespaceOption(network=cri.NODE, userns_options=wanted)
    context = cri.LinuxSandboxSecurityContext(namespace_options=options)
    config = pods.config(linux=cri.LinuxPodSandboxConfig(security_context=context))
    said = refused("INVALID_ARGUMENT", pods.run_pod, config, handler="runc")
    assert "'runc': an OCI binary gets no user namespace" in said


def test_a_handler_that_is_no_longer_configured_is_named(pods: Pods) -> None:
    pod = pods.run_pod(handler="runc")
    pods.daemon.stop()
    text = pods.daemon.config.read_text().replace("[runtimes.runc]", "[runtimes.other]")
    pods.daemon.config.write_text(text)
    pods.daemon.start()
    said = refused("FAILED_PRECONDITION", pods.create, pod, "true")
    assert "'runc' is not configured any more" in said
