"""`criserver explain` names the culprit: troubles as they happen on nodes, staged for real."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from api.cri import api_pb2 as cri
from tests.integration import images, tiny_elf
from tests.integration.cli import Cli
from tests.integration.daemon import RPC_SECONDS, Daemon, wait_for
from tests.integration.held_registry import HeldRegistry
from tests.integration.pods import Pods, refused
from tests.integration.registry import Registry

SLEEP = ("sleep", "3600")
MIB = 1 << 20


def explained(daemon: Daemon, reference: str) -> str:
    """What a person sees."""
    return Cli(daemon).output("explain", reference)


def values(daemon: Daemon, reference: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Cli(daemon).output("explain", "--json", reference))
    return found


def section(text: str, name: str) -> str:
    """The part of the output under one of its headings."""
    parts = text.split(f"\n{name}\n")
    assert len(parts) == 2, f"no {name} in:\n{text}"
    return parts[1].split("\n\n")[0]


@contextmanager
def in_background(call: Callable[..., Any], *arguments: Any) -> Iterator[Future[Any]]:
    """An RPC that hangs until the block has let it go; its failure is the test's."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call, *arguments)
        yield future
        future.result(RPC_SECONDS)


def wait_until_explained(daemon: Daemon, reference: str, words: str) -> str:
    """Explain until the answer says `words`, and return it."""
    last = ""

    def said() -> bool:
        nonlocal last
        result = Cli(daemon)("explain", reference)
        last = result.stdout.decode() or result.stderr.decode()
        return words in last

    try:
        wait_for(said, repr(words))
    except AssertionError as err:
        raise AssertionError(f"{words!r} is not in:\n{last}") from err
    return last


# -- what it waits for ------------------------------------------------------------------------


def slow_plugin(daemon: Daemon, gate: Path) -> None:
    """Configure a CNI plugin whose ADD hangs while `gate` is there."""
    result = {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/x"}]}
    result["ips"] = [{"address": "10.9.8.7/24", "interface": 0}]
    plugin = daemon.cni_bin_dir / "tardy"
    plugin.parent.mkdir()
    plugin.write_text(
        "#!/bin/sh\n"
        '[ "$CNI_COMMAND" = ADD ] || exit 0\n'
        'echo "asking controller 192.0.2.1 for an address" >&2\n'
        f"while [ -e {gate} ]; do sleep 0.05; done\n"
        f"echo '{json.dumps(result)}'\n"
    )
    plugin.chmod(0o755)
    config = {"cniVersion": "1.0.0", "name": "slow", "plugins": [{"type": "tardy"}]}
    (daemon.cni_conf_dir / "10-slow.conflist").write_text(json.dumps(config))


def networked(pods: Pods, name: str, **fields: Any) -> cri.PodSandboxConfig:
    options = cri.NamespaceOption(pid=cri.CONTAINER)
    context = cri.LinuxSandboxSecurityContext(namespace_options=options)
    return pods.config(name, linux=cri.LinuxPodSandboxConfig(security_context=context), **fields)


def test_a_cni_plugin_that_hangs(make_daemon: Callable[[], Daemon]) -> None:
    daemon = make_daemon()
    gate = daemon.home / "gate"
    gate.touch()
    daemon.cni_bin_dir = daemon.home / "plugins"
    slow_plugin(daemon, gate)
    daemon.start()
    pods = Pods(daemon)
    with in_background(pods.run_pod, networked(pods, "held-up")):
        try:
            text = wait_until_explained(
                daemon, "tests/held-up", "stderr: asking controller 192.0.2.1"
            )
        finally:
            gate.unlink()
    waiting = section(text, "WAITING")
    assert "RunPodSandbox for" in waiting
    assert "in sandbox > network > plugin (tardy ADD)" in waiting
    assert "CNI plugin tardy ADD has not ended: process " in waiting
    assert "WAITING" not in explained(daemon, "held-up")


def test_a_cni_plugin_that_cannot_take_back(make_daemon: Callable[[], Daemon]) -> None:
    daemon = make_daemon()
    gate = daemon.home / "gate"
    daemon.cni_bin_dir = daemon.home / "plugins"
    slow_plugin(daemon, gate)
    plugin = daemon.cni_bin_dir / "tardy"
    plugin.write_text(
        plugin.read_text().replace(
            '[ "$CNI_COMMAND" = ADD ] || exit 0\n',
            f'[ "$CNI_COMMAND" != DEL -o ! -e {gate} ] || {{ echo "lock held" >&2; exit 1; }}\n'
            '[ "$CNI_COMMAND" = ADD ] || exit 0\n',
        )
    )
    daemon.start()
    pods = Pods(daemon)
    pod = pods.run_pod(networked(pods, "undetachable"))
    gate.touch()
    pods.remove_pod(pod)  # which it does not hold up
    text = wait_until_explained(daemon, "undetachable", " times since")
    assert "removed" in text.splitlines()[0]
    assert re.search(r"DetachNetwork \(\d+ times since ", section(text, "TROUBLE"))
    assert "plugin tardy DEL: " in section(text, "TROUBLE")
    assert "lock held" in section(text, "TROUBLE")
    gate.unlink()

    def is_made_good() -> bool:
        return "TROUBLE" not in explained(daemon, "undetachable")

    wait_for(is_made_good, "a DEL that succeeds")


def test_a_registry_that_stalls(pods: Pods) -> None:
    held = HeldRegistry()
    try:
        layer = images.files_layer({"file": os.urandom(100_000)})
        name = held.add("app", images.Image((layer,), {}))
        go_on = held.hold(layer)
        pods.daemon.use_registry(held.address, held.address)
        request = cri.PullImageRequest(image=cri.ImageSpec(image=name))
        with in_background(pods.daemon.images.PullImage, request, RPC_SECONDS):
            try:
                text = wait_until_explained(pods.daemon, name, "bytes have come, the last")
            finally:
                go_on.set()
    finally:
        held.close()
    waiting = section(text, "WAITING")
    assert "PullImage for" in waiting
    assert f"layer ({images.digest(layer.blob)})" in waiting
    assert f"registry {held.address}: {len(layer.blob) // 2} of {len(layer.blob)} bytes" in waiting


def test_a_registry_that_answers_with_errors(pods: Pods) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    threading.Thread(target=unavailable, args=(listener,)).start()
    pods.daemon.use_registry(address, address)
    request = cri.PullImageRequest(image=cri.ImageSpec(image=f"{address}/app:1"))
    refused("UNKNOWN", pods.daemon.images.PullImage, request, timeout=RPC_SECONDS)
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    text = explained(pods.daemon, f"{address}/app:1")
    assert f"{address}: 503" in section(text, "TROUBLE")
    assert text.count(f"! {address}: 503") > 1, "the retries are missing"


def unavailable(listener: socket.socket) -> None:
    """Answer everything with 503 until the listener is shut down."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.recv(65536)
            headers = b"Content-Length: 0\r\nConnection: close\r\n\r\n"
            connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\n" + headers)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (SLEEP, "it has no handler for SIGTERM, and as PID 1"),
        (("sh", "-c", "trap '' TERM; sleep 3600; true"), "it ignores SIGTERM"),
        (("sh", "-c", "trap : TERM; while :; do sleep 1; done"), "it has a handler for SIGTERM"),
    ],
    ids=["default", "ignored", "handled"],
)
def test_a_process_that_does_not_end_on_sigterm(
    pods: Pods, pod: str, command: tuple[str, ...], reason: str
) -> None:
    container = pods.run(pod, *command)
    with in_background(pods.stop, container, 3600):
        try:
            text = wait_until_explained(pods.daemon, container, "SIGTERM was sent")
        finally:
            pods.stop(container, 0)
    waiting = section(text, "WAITING")
    assert "StopContainer for" in waiting
    assert "in grace for" in waiting
    assert f"({' '.join(command)})" in waiting
    assert reason in waiting


def test_a_process_that_hangs_in_the_kernel(pods: Pods, pod: str) -> None:
    program = pods.daemon.home / "hang"
    program.write_bytes(tiny_elf.vfork_and_wait())
    program.chmod(0o755)
    mount = cri.Mount(host_path=str(program), container_path="/hang", readonly=True)
    container = pods.run(pod, "/hang", mounts=[mount])
    text = wait_until_explained(pods.daemon, container, "uninterruptible sleep")
    assert "(hang) is in uninterruptible sleep (D) in " in section(text, "WAITING")
    assert "vfork" in section(text, "WAITING")


def test_an_operation_that_waits_for_another_one(pods: Pods, pod: str) -> None:
    container = pods.run(pod, "sh", "-c", "trap '' TERM; sleep 3600")
    update = cri.UpdateContainerResourcesRequest(
        container_id=container, linux=cri.LinuxContainerResources(cpu_shares=100)
    )
    runtime = pods.daemon.runtime
    with ExitStack() as calls:
        calls.enter_context(in_background(pods.stop, container, 3600))
        try:
            wait_until_explained(pods.daemon, container, "StopContainer for")
            calls.enter_context(in_background(code_of, runtime.UpdateContainerResources, update))
            text = wait_until_explained(pods.daemon, container, "its turn")
        finally:
            pods.stop(container, 0)
    waiting = section(text, "WAITING")
    assert "UpdateContainerResources for" in waiting
    assert f"waits for: its turn: StopContainer of {container} is in stage 'grace'" in waiting


def code_of(call: Any, request: Any) -> str:
    try:
        call(request, timeout=RPC_SECONDS)
    except grpc.RpcError as err:
        return str(err.code().name)  # type: ignore[attr-defined]
    return "OK"


# -- what went wrong --------------------------------------------------------------------------


def test_an_image_that_does_not_exist(pods: Pods) -> None:
    config = pods.config("wants-an-image")
    empty = HeldRegistry()
    name = f"{empty.address}/no/such:image"
    pods.daemon.use_registry(empty.address, empty.address)
    pod = pods.run_pod(config)
    request = cri.PullImageRequest(image=cri.ImageSpec(image=name), sandbox_config=config)
    refused("NOT_FOUND", pods.daemon.images.PullImage, request, timeout=RPC_SECONDS)
    refused("NOT_FOUND", pods.daemon.images.PullImage, request, timeout=RPC_SECONDS)
    for reference in (name, "wants-an-image"):
        trouble = section(explained(pods.daemon, reference), "TROUBLE")
        assert "PullImage (2 times since " in trouble
        assert name in trouble
        assert "404" in trouble
    empty.close()
    pods.remove_pod(pod)


def failed_container(pods: Pods, pod: str, code: str, name: str, **fields: Any) -> str:
    """Create a container in vain, and return what is said of it afterwards, by its name."""
    command = fields.pop("command", SLEEP)
    refused(code, pods.create, pod, *command, name=name, **fields)
    text = explained(pods.daemon, name)
    assert text.startswith(f"container {name} of pod tests/")
    assert ": removed\n" in text, "the attempt was undone"
    return section(text, "TROUBLE")


def security(**fields: Any) -> cri.LinuxContainerConfig:
    options = cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER)
    context = cri.LinuxContainerSecurityContext(namespace_options=options, **fields)
    return cri.LinuxContainerConfig(security_context=context)


def test_a_binary_that_is_missing(pods: Pods, pod: str) -> None:
    container = pods.create(pod, "/no/such/program", name="no-program")
    refused("INVALID_ARGUMENT", pods.start, container)
    text = explained(pods.daemon, "no-program")
    assert text.splitlines()[0].endswith(": EXITED")
    trouble = section(text, "TROUBLE")
    assert "StartContainer" in trouble
    assert "/no/such/program" in trouble


def test_a_user_that_the_image_does_not_have(pods: Pods, pod: str) -> None:
    linux = security(run_as_username="nosuchuser")
    trouble = failed_container(pods, pod, "INVALID_ARGUMENT", "no-user", linux=linux)
    assert "CreateContainer" in trouble
    assert "nosuchuser" in trouble


def test_an_apparmor_profile_that_cannot_be_had(pods: Pods, pod: str) -> None:
    profile = cri.SecurityProfile(
        profile_type=cri.SecurityProfile.Localhost, localhost_ref="localhost/no-such-profile"
    )
    linux = security(apparmor=profile)
    with pytest.raises(grpc.RpcError):
        pods.create(pod, *SLEEP, name="no-profile", linux=linux)
    trouble = section(explained(pods.daemon, "no-profile"), "TROUBLE")
    assert "AppArmor" in trouble
    assert "no-such-profile" in trouble


def test_a_host_port_that_is_taken(pods: Pods) -> None:
    mapping = cri.PortMapping(container_port=80, host_port=29_118)
    first = pods.run_pod(networked(pods, "first-on-port", port_mappings=[mapping]))
    second = networked(pods, "second-on-port", port_mappings=[mapping])
    refused("ALREADY_EXISTS", pods.run_pod, second)
    trouble = section(explained(pods.daemon, "second-on-port"), "TROUBLE")
    assert "RunPodSandbox" in trouble
    assert "29118" in trouble
    assert first in trouble
    pods.remove_pod(first)


def test_a_container_that_runs_out_of_memory(pods: Pods, pod: str) -> None:
    linux = security()
    linux.resources.memory_limit_in_bytes = 16 * MIB
    container = pods.run(pod, "tail", "/dev/zero", name="greedy", linux=linux)
    pods.exited(container)
    trouble = section(explained(pods.daemon, "greedy"), "TROUBLE")
    assert "exited with 137" in trouble
    assert "OOMKilled" in trouble


def test_a_runtime_handler_whose_binary_fails(
    make_daemon: Callable[[], Daemon], registry: Registry
) -> None:
    daemon = make_daemon()
    broken = daemon.home / "broken-runtime"
    broken.write_text('#!/bin/sh\necho "license has expired" >&2\nexit 3\n')
    broken.chmod(0o755)
    with daemon.config.open("a") as config:
        config.write(f'[runtimes.broken]\npath = "{broken}"\n')
    daemon.start()
    pods = Pods(daemon)
    pods.pull(registry)
    pod = pods.run_pod(handler="broken")
    refused("INTERNAL", pods.create, pod, *SLEEP, name="licensed")
    trouble = section(explained(daemon, "licensed"), "TROUBLE")
    assert "license has expired" in trouble


def test_a_full_disk(make_daemon: Callable[[], Daemon], registry: Registry) -> None:
    daemon = make_daemon()
    daemon.root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(daemon.root)]
    subprocess.run(mount, check=True, timeout=60)
    try:
        daemon.start()
        layer = images.files_layer({"big": os.urandom(16 * MIB)})
        images.push(registry.address, "too/big", images.Image((layer,), {}))
        name = "registry.test/too/big:latest"
        request = cri.PullImageRequest(image=cri.ImageSpec(image=name))
        refused("UNKNOWN", daemon.images.PullImage, request, timeout=RPC_SECONDS)
        trouble = section(explained(daemon, name), "TROUBLE")
        daemon.stop()
    finally:
        daemon.kill9()
        subprocess.run(["umount", "--lazy", str(daemon.root)], check=True, timeout=60)
    assert "PullImage" in trouble
    assert "disk space would be left: free, or repair, the disk" in trouble


# -- how it is told ---------------------------------------------------------------------------


def test_the_timeline_of_a_pod_has_every_stage_down_to_the_executor(pods: Pods) -> None:
    pod = pods.run_pod(pods.config("told"))
    container = pods.run(pod, *SLEEP, name="main")
    found = values(pods.daemon, "tests/told")
    assert found["object"]["key"] == pod
    assert [record["name"] for record in found["timeline"]] == [
        "RunPodSandbox",
        "CreateContainer",
        "StartContainer",
    ]
    creation = found["timeline"][1]
    names = [stage["name"] for stage in creation["stages"]]
    order = ["rootfs", "user", "spec", "create", "create.init", "create.pivot"]
    assert [name for name in names if name in order] == order
    assert {"create.cgroup", "create.fork"} <= set(names)  # an init that stood by was forked first
    parts = [s for s in creation["stages"] if s["name"].startswith("create.")]
    starts = [part["start"] for part in parts]
    assert starts == sorted(starts)
    assert all(part["depth"] == 1 for part in parts)
    total = creation["duration"]
    assert all(s["start"] + s["duration"] <= total for s in creation["stages"])
    told = pods.verbose_status(container).info["explain"]
    assert json.loads(told)["object"]["text"] == "container main of pod tests/told"
    pods.remove_pod(pod)


def test_what_is_gone_is_remembered_by_name_and_by_id_and_over_a_restart(pods: Pods) -> None:
    pod = pods.run_pod(pods.config("short-lived"))
    container = pods.create(pod, "/no/such/program", name="failing")
    refused("INVALID_ARGUMENT", pods.start, container)
    pods.remove_pod(pod)
    pods.daemon.restart()
    for reference in ("short-lived", pod[:13], "short-lived/failing", container[:13]):
        text = explained(pods.daemon, reference)
        assert ": removed" in text.splitlines()[0]
        assert "/no/such/program" in section(text, "TROUBLE")
        assert "Remove" in section(text, "TIMELINE")


def test_a_waterfall_is_drawn(pods: Pods, pod: str, tmp_path: Path) -> None:
    container = pods.create(pod, "/no/<such>", name="drawn")
    refused("INVALID_ARGUMENT", pods.start, container)
    picture = tmp_path / "drawn.svg"
    assert Cli(pods.daemon).output("explain", "drawn", "--svg", str(picture)) == ""
    root = ET.parse(picture).getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    words = [text.text for text in root.iter(f"{space}text")]
    assert any("create.pivot" in (word or "") for word in words)
    assert any("/no/<such>" in (word or "") for word in words)
    bars = [rect for rect in root.iter(f"{space}rect") if rect.get("rx")]
    assert len(bars) > 10
    assert all(float(bar.get("width", "0")) > 0 for bar in bars)


def test_what_nobody_has_heard_of(pods: Pods) -> None:
    result = Cli(pods.daemon)("explain", "nobody")
    assert result.returncode == 1
    assert b"cannot explain nobody: pod, container or pull of an image 'nobody' not found" in (
        result.stderr
    )
