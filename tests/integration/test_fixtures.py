"""The fixtures themselves: the leak check finds what it is there for, the images are images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration import daemon as daemons
from tests.integration import images, leaks
from tests.integration.daemon import Daemon
from tests.integration.registry import Registry

NAME = f"{leaks.SESSION}t"
LINK = f"cri{os.getpid() % 10**7}t"


def run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=60)


# Each makes one thing, has the stack take it away, and returns how the leak check names it.


def link(stack: ExitStack) -> str:
    run("ip", "link", "add", LINK, "type", "bridge")
    stack.callback(run, "ip", "link", "delete", LINK)
    return f"links: {LINK} "


def named_netns(stack: ExitStack) -> str:
    run("ip", "netns", "add", NAME)
    stack.callback(run, "ip", "netns", "delete", NAME)
    return f"mounts: /run/netns/{NAME} (nsfs"


def mount(stack: ExitStack) -> str:
    target = Path("/run", f"{NAME}-mount")
    target.mkdir()
    stack.callback(target.rmdir)
    run("mount", "-t", "tmpfs", "tests", str(target))
    stack.callback(run, "umount", str(target))
    return f"mounts: {target} (tmpfs from tests"


def cgroup(stack: ExitStack) -> str:
    hierarchy = min(leaks.CGROUPS.rglob("cgroup.procs")).parent
    directory = hierarchy / NAME
    directory.mkdir()
    stack.callback(directory.rmdir)
    return f"cgroups: {directory}"


def orphan(stack: ExitStack) -> str:
    """A process whose parent has gone and whose command line says nothing of this session."""
    starter = 'sleep 1000 </dev/null >/dev/null 2>&1 & echo "$!"'
    result = subprocess.run(["sh", "-c", starter], capture_output=True, check=True, text=True)
    pid = int(result.stdout)
    stack.callback(os.kill, pid, signal.SIGKILL)
    return f"processes: {pid} "


def container(stack: ExitStack) -> str:
    """An orphan with no environment, in a root of its own, known by a mount alone."""
    root = Path("/run", f"{NAME}-root")
    root.mkdir()
    stack.callback(root.rmdir)
    (root / "busybox").touch()
    stack.callback((root / "busybox").unlink)
    script = (
        f"mount --bind {images.BUSYBOX} {root}/busybox && mount --rbind {root} /mnt && cd /mnt &&"
        " { env -i /usr/sbin/chroot . /busybox sleep 1000 </dev/null >/dev/null 2>&1 & echo $!; }"
    )
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, check=True, text=True
    )
    pid = int(result.stdout)
    stack.callback(os.kill, pid, signal.SIGKILL)
    daemons.wait_for(
        lambda: leaks.read(leaks.PROC / str(pid) / "cmdline").startswith("/busybox"), "the chroot"
    )
    assert leaks.read(leaks.PROC / str(pid) / "environ") == ""
    return f"processes: {pid} "


def outsider(command: str) -> int:
    """Start an orphan that says nothing of this session."""
    script = f"{command} </dev/null >/dev/null 2>&1 & echo $!"
    result = subprocess.run(
        ["env", "-i", "/bin/sh", "-c", script], capture_output=True, check=True, text=True, cwd="/"
    )
    return int(result.stdout)


def isolated(stack: ExitStack) -> str:
    """A process that says nothing of this session, in a PID namespace of its own."""
    parent = outsider("unshare --pid --fork env -i /bin/sleep 1000")
    daemons.wait_for(lambda: len(leaks.descendants(parent)) == 1, "the fork")
    [pid] = leaks.descendants(parent)
    stack.callback(os.kill, pid, signal.SIGKILL)
    return f"processes: {pid} "


def rule(stack: ExitStack) -> str:
    run("nft", f"table inet {NAME} {{ chain pods {{ ip saddr 192.0.2.1 counter accept; }}; }}")
    stack.callback(run, "nft", "delete", "table", "inet", NAME)
    return f"nftables: inet {NAME}: rule "


def file(stack: ExitStack) -> str:
    leaks.CNI_STATE[0].mkdir(exist_ok=True)
    path = leaks.CNI_STATE[0] / NAME
    path.touch()
    stack.callback(path.unlink)
    return f"files: {path}"


KINDS = [link, named_netns, mount, cgroup, orphan, container, isolated, rule, file]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_what_is_left_behind_is_found_until_it_is_gone(make: Callable[[ExitStack], str]) -> None:
    before = leaks.snapshot()
    with ExitStack() as stack:
        expected = make(stack)
        with pytest.raises(AssertionError, match="left behind") as failure:
            leaks.assert_nothing_left(before, settle=0)
        lines = [line.strip() for line in str(failure.value).splitlines()]
        assert any(line.startswith(expected) for line in lines), lines
    leaks.assert_nothing_left(before)


def test_a_cgroup_is_ours_when_no_other_program_is_in_it() -> None:
    with ExitStack() as stack:
        directory = Path(cgroup(stack).removeprefix("cgroups: "))
        pid = outsider("sleep 1000")
        stack.callback(daemons.wait_for, lambda: not leaks.read(directory / "cgroup.procs"), "exit")
        stack.callback(os.kill, pid, signal.SIGKILL)
        (directory / "cgroup.procs").write_text(str(pid))
        assert str(directory) not in leaks.snapshot().cgroups
        (directory.parent / "cgroup.procs").write_text(str(pid))
        assert str(directory) in leaks.snapshot().cgroups


def test_the_registry_serves_what_was_pushed(registry: Registry) -> None:
    image = images.busybox(images.files_layer({"etc/motd": "hello"}), cmd=["cat", "/etc/motd"])
    images.push(registry.address, "fixtures/plain", image)
    assert inspect(f"docker://{registry.address}/fixtures/plain:latest") == json.loads(
        image.config_blob
    )
    assert "GET /v2/fixtures/plain/manifests/latest" in registry.requests()


@pytest.mark.parametrize("types", [images.OCI, images.DOCKER], ids=["oci", "docker"])
def test_an_index_leads_to_this_machines_image(
    registry: Registry, types: images.MediaTypes
) -> None:
    mine = images.busybox(env=["MINE=1"], types=types)
    other = images.Image(mine.layers, {"Env": ["MINE=0"]}, architecture="s390x", types=types)
    images.push_index(registry.address, "fixtures/index", [other, mine], "several", types)
    config = inspect(f"docker://{registry.address}/fixtures/index:several")
    assert config["config"]["Env"] == ["MINE=1"]


def test_archives_are_read_by_other_tools(tmp_path: Path) -> None:
    image = images.busybox(images.files_layer({"x": "y"}))
    images.write_oci_archive(tmp_path / "oci.tar", {"registry.test/x:1": image})
    images.write_docker_archive(tmp_path / "docker.tar", {"registry.test/x:1": image})
    for archive in ("oci-archive", "docker-archive"):
        path = tmp_path / f"{archive.removesuffix('-archive')}.tar"
        assert inspect(f"{archive}:{path}") == json.loads(image.config_blob)


def inspect(reference: str) -> dict[str, dict[str, object]]:
    """The image's config as skopeo reads it."""
    command = ["skopeo", "inspect", "--config", "--raw", "--tls-verify=false", reference]
    result = subprocess.run(command, capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr
    config: dict[str, dict[str, object]] = json.loads(result.stdout)
    return config


def test_a_missing_blob_is_refused(registry: Registry) -> None:
    image = images.busybox(cmd=["never", "pushed"])
    with pytest.raises(urllib.error.HTTPError):
        images.push_manifest(
            registry.address, "fixtures/bad", image.manifest, image.types.manifest, "bad"
        )


def test_a_daemon_that_does_not_serve_fails_with_its_standard_error(
    make_daemon: Callable[[], Daemon],
) -> None:
    made = make_daemon()
    made.config.write_text("unknown_key = 1\n")
    with pytest.raises(AssertionError, match=r"criserver exited with [1-9].*(?s:.)*unknown_key"):
        made.start()


def test_the_session_fails_where_it_cannot_run() -> None:
    """Run as nobody, the tests fail with a clear message: they neither pass nor skip."""
    reading = "--inh-caps=+dac_read_search --ambient-caps=+dac_read_search"  # a checkout of root's
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *reading.split()]
    command += [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider", __file__]
    command += ["-k", "file and found_until"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == pytest.ExitCode.TESTS_FAILED, result.stdout + result.stderr
    assert "integration tests run as root on Linux" in result.stdout
    assert "skipped" not in result.stdout
