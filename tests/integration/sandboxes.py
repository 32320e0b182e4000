"""Sandboxes without a daemon: the real spawner, kernel and plugins, in private names.

Sockets of another network namespace are made by a thread that enters it: a namespace belongs to a
thread, and a socket to the namespace in which it was opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from api.cri import api_pb2 as cri
from podsandbox.lifecycle import Sandboxes, SandboxRuntime
from podsandbox.namespaces import WORKER
from podsandbox.network import SelectedNetwork
from podsandbox.network.builtin import BuiltinConfig, BuiltinNetwork
from podsandbox.network.cni import CNINetwork
from podsandbox.network.pod_cidrs import PodCIDRs
from podsandbox.plan import SandboxHost
from runtimeshim.client import Spawner
from runtimeshim.linux import cgroups, syscalls
from tests.integration import harness, leaks
from tests.integration.daemon import wait_for

PLUGINS = Path("/usr/lib/cni")
HOST = "/proc/self/ns/net"

# What a packet may take on a loaded machine; nothing is measured by it.
SOCKET_SECONDS = 10.0
COMMAND_SECONDS = 60.0

_number = itertools.count()
T = TypeVar("T")


class World:
    """Sandboxes with a network of their own, and what the tests made of them."""

    def __init__(self, home: Path, spawner: Spawner) -> None:
        number = next(_number)
        self.home = home
        self.spawner = spawner
        self.bridge = f"crp{os.getpid() % 10**7}n{number}"
        octet = (os.getpid() * 8 + number) % 256
        self.subnet, self.cni_subnet = f"10.126.{octet}.0/24", f"10.127.{octet}.0/24"
        self.subnet6, self.cni_subnet6 = f"fd7e:{octet:x}:1::/64", f"fd7e:{octet:x}:2::/64"
        self.subnets: tuple[str, ...] = (self.subnet, self.subnet6)
        self.cni_dir, self.cni_dir_2 = home / "net.d", home / "net2.d"
        self.cni_dir.mkdir()
        # Not in /run, from which nothing can be executed on Debian.
        self.bin_dir = Path(tempfile.mkdtemp(prefix=leaks.SESSION, dir="/var/tmp"))
        self.database = open_database(home / "db")
        self.cni_timeout = 30.0
        self.made: dict[str, tuple[cri.PodSandboxConfig, SandboxRuntime]] = {}
        self.ids: list[str] = []  # of all that were ever asked for
        self.open()

    def open(self) -> None:
        """Make the parts anew, as a daemon's start does."""
        cidrs = PodCIDRs(self.database)
        self.builtin = BuiltinNetwork(
            BuiltinConfig(bridge=self.bridge, subnets=self.subnets), self.database, cidrs
        )
        self.cni = CNINetwork(
            [self.cni_dir, self.cni_dir_2],
            [self.bin_dir, PLUGINS],
            self.spawner,
            self.database,
            cidrs,
            timeout=self.cni_timeout,
        )
        self.network = SelectedNetwork(self.cni, self.builtin, cidrs)
        host = SandboxHost(cgroup_driver=harness.CGROUP_DRIVER)
        self.sandboxes = Sandboxes(self.home, self.spawner, self.network, cgroups.manager(), host)

    async def restart(self) -> None:
        """As after a crash of the daemon: only the database and the machine remember."""
        await self.network.close()
        self.open()

    async def create(self, config: cri.PodSandboxConfig | None = None) -> str:
        """Make a sandbox; returns its id."""
        sandbox_id = secrets.token_hex(32)
        self.ids.append(sandbox_id)
        config = config or pod_config()
        self.made[sandbox_id] = (config, await self.sandboxes.create(sandbox_id, config))
        return sandbox_id

    def runtime(self, sandbox_id: str) -> SandboxRuntime:
        return self.made[sandbox_id][1]

    def ip(self, sandbox_id: str) -> str:
        return self.runtime(sandbox_id).ips[0]

    def ip6(self, sandbox_id: str) -> str:
        return self.runtime(sandbox_id).ips[1]

    def netns(self, sandbox_id: str) -> str:
        return self.runtime(sandbox_id).namespaces["network"]

    async def stop(self, sandbox_id: str) -> None:
        await self.sandboxes.stop(sandbox_id, *self.made[sandbox_id])

    async def remove(self, sandbox_id: str) -> None:
        await self.sandboxes.remove(sandbox_id)
        del self.made[sandbox_id]

    def assert_nothing_left(
        self, before: leaks.Snapshot, directories: Collection[Path] = ()
    ) -> None:
        """As leaks.assert_nothing_left, of what is this world's: others use the machine too."""
        deadline = time.monotonic() + leaks.SETTLE_SECONDS
        while left := self._mine(leaks.snapshot(directories).added_since(before)):
            assert time.monotonic() < deadline, "left behind:\n  " + "\n  ".join(left)
            time.sleep(0.05)

    def _mine(self, entries: list[str]) -> list[str]:
        # Names of links have room for 12 digits of an id.
        names = [self.home.name, self.bridge, *(sandbox_id[:12] for sandbox_id in self.ids)]
        roots = {os.getpid(), *leaks.named_processes(self.home.name)}
        below = leaks.below(roots, leaks.process_table()) - leaks.standing_by()
        names += [f"processes: {pid} " for pid in below]
        return [entry for entry in entries if any(name in entry for name in names)]

    async def close(self) -> None:
        for sandbox_id in list(self.made):
            await self.stop(sandbox_id)
            await self.remove(sandbox_id)
        await self.builtin.reset()
        await self.network.close()
        self.database.close()
        shutil.rmtree(self.bin_dir)


def open_database(path: Path) -> sqlite3.Connection:
    """As criserver.store opens it."""
    database = sqlite3.connect(path, isolation_level="IMMEDIATE")
    database.execute("PRAGMA journal_mode = WAL")
    return database


def pod_config(**fields: object) -> cri.PodSandboxConfig:
    """A pod as the kubelet asks for it: a PID namespace for each container."""
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name="pod", namespace="default", uid="uid-1"), **fields
    )
    config.linux.security_context.namespace_options.pid = cri.CONTAINER
    return config


@contextlib.asynccontextmanager
async def new_world() -> AsyncIterator[World]:
    """Run a spawner and give it pods; everything is gone afterwards, or the test fails."""
    before = leaks.snapshot()
    home = Path(tempfile.mkdtemp(prefix=leaks.SESSION, dir="/run"))
    try:
        spawner = await Spawner.connect(home, {WORKER: "podsandbox.namespaces_worker:main"})
        try:
            world = World(home, spawner)
            try:
                yield world
            finally:
                await world.close()
        finally:
            await end(spawner)
    finally:
        shutil.rmtree(home)
    world.assert_nothing_left(before)


async def end(spawner: Spawner) -> None:
    """End a spawner, which is a child of this process and is reaped by its client."""
    pid = spawner.pid
    await spawner.close()
    os.kill(pid, signal.SIGTERM)
    await asyncio.to_thread(wait_for, lambda: not Path(f"/proc/{pid}").exists(), "its end")


def inside(netns: str | Path, work: Callable[[], T]) -> T:
    """Run `work` in a thread that has entered a network namespace."""
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            fd = os.open(netns, os.O_RDONLY)
            try:
                syscalls.setns(fd, syscalls.CLONE_NEWNET)
            finally:
                os.close(fd)
            results.append(work())
        except BaseException as err:  # noqa: BLE001 - raised again in the caller
            failures.append(err)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def new_socket(netns: str | Path, kind: int, family: int = socket.AF_INET) -> socket.socket:
    """Open a socket in a network namespace."""
    made = inside(netns, lambda: socket.socket(family, kind))
    made.settimeout(SOCKET_SECONDS)
    return made


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """A port that nobody on the host listens on."""
    with new_socket(HOST, kind) as sock:
        sock.bind(("0.0.0.0", 0))
        return int(sock.getsockname()[1])


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def listening(server: str | Path, kind: int, port: int, family: int) -> socket.socket:
    """Open a socket in a namespace, bound to a port of every address of a family."""
    listener = new_socket(server, kind, family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    return listener


def tcp(server: str | Path, port: int, client: str | Path, address: tuple[str, int]) -> str:
    """Serve TCP in one namespace, connect from another; returns the client as the server sees it.

    Data goes both ways. Raises OSError when the connection cannot be made.
    """
    family = family_of(address[0])
    with listening(server, socket.SOCK_STREAM, port, family) as listener:
        listener.listen()
        with new_socket(client, socket.SOCK_STREAM, family) as caller:
            caller.connect(address)
            accepted, peer = listener.accept()
            with accepted:
                accepted.settimeout(SOCKET_SECONDS)
                caller.sendall(b"question")
                assert accepted.recv(100) == b"question"
                accepted.sendall(b"answer")
                assert caller.recv(100) == b"answer"
    return str(peer[0])


def udp(server: str | Path, port: int, client: str | Path, address: tuple[str, int]) -> str:
    """As tcp, with datagrams; the client takes an answer from `address` only."""
    family = family_of(address[0])
    with (
        listening(server, socket.SOCK_DGRAM, port, family) as listener,
        new_socket(client, socket.SOCK_DGRAM, family) as caller,
    ):
        caller.connect(address)
        caller.send(b"question")
        data, peer = listener.recvfrom(100)
        assert data == b"question"
        listener.sendto(b"answer", peer)
        assert caller.recv(100) == b"answer"
    return str(peer[0])


class OtherMachine:
    """A network namespace behind a link of the host: it has no route to the pods."""

    def __init__(self) -> None:
        number = next(_number)
        self.name = f"{leaks.SESSION}far{number}"
        self.link = f"crf{os.getpid() % 10**7}n{number}"
        octet = (os.getpid() * 8 + number) % 256
        self.host_ip, self.ip = f"198.18.{octet}.1", f"198.18.{octet}.2"
        self.host_ip6, self.ip6 = f"2001:db8:{octet:x}::1", f"2001:db8:{octet:x}::2"
        self.netns = f"/run/netns/{self.name}"
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", self.link, "type", "veth", "peer", "far0", "netns", self.name)
        run("ip", "address", "add", f"{self.host_ip}/24", "dev", self.link)
        run("ip", "address", "add", f"{self.host_ip6}/64", "dev", self.link, "nodad")
        run("ip", "link", "set", self.link, "up")
        run("ip", "-n", self.name, "address", "add", f"{self.ip}/24", "dev", "far0")
        run("ip", "-n", self.name, "address", "add", f"{self.ip6}/64", "dev", "far0", "nodad")
        run("ip", "-n", self.name, "link", "set", "far0", "up")

    def close(self) -> None:
        run("ip", "link", "delete", self.link)
        run("ip", "netns", "delete", self.name)


@contextlib.contextmanager
def other_machine() -> Iterator[OtherMachine]:
    machine = OtherMachine()
    try:
        yield machine
    finally:
        machine.close()


def run(*argv: str) -> str:
    """Run a program; returns its standard output, and raises with its standard error."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_SECONDS)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout


def start(*argv: str) -> subprocess.Popen[str]:
    """Start a program with pipes; the caller ends it."""
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def links(prefix: str = "") -> Sequence[str]:
    """The names of the host's links."""
    return sorted(name for name in os.listdir("/sys/class/net") if name.startswith(prefix))
