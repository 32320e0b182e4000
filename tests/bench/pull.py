"""Pulls side by side with the peers on PATH, and the memory that a large one takes.

    .venv/bin/python -m tests.bench.pull [--rounds N] [--only pulls|memory] [--directory DIR]

Prints the tables of docs/benchmarks.md. Run as root, on a machine that does nothing else: what
counts is the ratio within one run.
"""

from __future__ import annotations

import argparse
import functools
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from isal import igzip

from tests.bench.servers import OurServer, Server, start_all
from tests.integration import images
from tests.integration.registry import Registry

MIB = 1 << 20
# Between two looks at a process' memory.
SAMPLE_SECONDS = 0.02


class FastLayer(images.Layer):
    """A layer compressed by igzip: the 1 GB one would take zlib half a minute."""

    @functools.cached_property
    def blob(self) -> bytes:
        return bytes(igzip.compress(self.tar, compresslevel=1, mtime=0))


def content(size: int, seed: int) -> bytes:
    """Bytes that gzip halves, as programs do."""
    source = random.Random(seed)
    piece = b"".join(source.randbytes(512) + bytes(512) for _ in range(min(size, 8 * MIB) // 1024))
    return (piece * (size // len(piece) + 1))[:size] if size > len(piece) else piece[:size]


def layer_of(files: dict[str, bytes]) -> images.Layer:
    """A layer of these files."""
    return FastLayer(images.files_layer(files).tar)


def small() -> images.Image:
    return images.Image((images.busybox_layer(),))


def many_files() -> images.Image:
    files = {f"usr/{n // 100}/{n}": content(4096, n) for n in range(20_000)}
    return images.Image((layer_of(files),))


def four_layers() -> images.Image:
    return images.Image(
        tuple(
            layer_of({f"opt/{layer}/{n}": content(MIB, 60 * layer + n) for n in range(60)})
            for layer in range(4)
        )
    )


def one_file() -> images.Image:
    return images.Image((layer_of({"opt/large": content(200 * MIB, 1)}),))


def one_gigabyte() -> images.Image:
    return images.Image((layer_of({"opt/huge": content(1024 * MIB, 2)}),))


PULLED: dict[str, Callable[[], images.Image]] = {
    "busybox, 1 layer": small,
    "20,000 files of 4 KB": many_files,
    "4 layers of 60 files of 1 MB": four_layers,
    "one file of 200 MB": one_file,
}


def main() -> None:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="pulls of each image (default 5)")
    parser.add_argument("--only", choices=("pulls", "memory"), help="one of the two tables")
    parser.add_argument(
        "--directory", type=Path, default=Path("/var/lib"), help="where the roots are made"
    )
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="bench-", dir=options.directory))
    servers: list[Server] = []
    (home / "registry").mkdir()
    registry = Registry(home / "registry")
    try:
        servers = start_all(home)
        if options.only != "memory":
            print_pulls(servers, push_all(registry), options.rounds)
        if options.only != "pulls":
            print_memory(servers, push(registry, "huge", one_gigabyte()))
    finally:
        for server in servers:
            server.close()
        registry.stop()
        unmount_below(home)
        shutil.rmtree(home)


def push_all(registry: Registry) -> dict[str, str]:
    """Push the images; returns what they are called in the table and in the registry."""
    return {
        title: push(registry, f"bench{number}", make())
        for number, (title, make) in enumerate(PULLED.items())
    }


def push(registry: Registry, repository: str, image: images.Image) -> str:
    images.push(registry.address, repository, image)
    return f"{registry.address}/{repository}:latest"


def print_pulls(servers: Sequence[Server], names: dict[str, str], rounds: int) -> None:
    """Print a row for each image and each of the quick calls: medians, and ours as a share."""
    peers = servers[1:]
    print("| operation | " + " | ".join(server.name for server in servers) + " | ratio |")
    print("|---|" + "---|" * (len(servers) + 1))
    for title, name in names.items():
        small_image = name.endswith("bench0:latest")
        times = measured(servers, name, 4 * rounds if small_image else rounds)
        operations = ("pull", "status", "remove") if small_image else ("pull",)
        for operation in operations:
            medians = [statistics.median(times[server.name][operation]) for server in servers]
            shown = " | ".join(f"{1000 * median:.1f} ms" for median in medians)
            ratio = f"{medians[0] / min(medians[1:]):.2f}" if peers else "-"
            print(f"| {operation}: {title} | {shown} | {ratio} |", flush=True)


def measured(
    servers: Sequence[Server], name: str, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Pull, look at and remove `name` in turns; the first round only warms the caches."""
    times: dict[str, dict[str, list[float]]] = {
        server.name: {"pull": [], "status": [], "remove": []} for server in servers
    }
    for number in range(rounds + 1):
        for server in servers if number % 2 else reversed(servers):
            settle()
            found = {
                "pull": server.pull(name),
                "status": server.status(name),
                "remove": server.remove(name),
            }
            if number:
                for operation, seconds in found.items():
                    times[server.name][operation].append(seconds)
    return times


def settle() -> None:
    """Let nothing of what another server wrote be written in the next one's time."""
    subprocess.run(["sync"], check=True)
    time.sleep(0.2)


# -- memory -----------------------------------------------------------------------------------


class Watch:
    """The largest resident size that each process of some trees has had."""

    def __init__(self, roots: Sequence[int]) -> None:
        self._roots = roots
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.idle, _ = resident(roots)
        self.peak: dict[int, int] = dict(self.idle)
        self._parents: dict[int, int] = {}

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            sizes, parents = resident(self._roots)
            self._parents.update(parents)
            for pid, size in sizes.items():
                self.peak[pid] = max(size, self.peak.get(pid, 0))

    def growth(self) -> list[int]:
        """Bytes above idle of each process; one that was forked began with its parent's."""
        return sorted(
            (
                peak - self.idle.get(pid, self.idle.get(self._parents.get(pid, 0), 0))
                for pid, peak in self.peak.items()
            ),
            reverse=True,
        )


def resident(roots: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
    """Resident bytes of the processes `roots` and of all below them, and the parent of each."""
    found: dict[int, int] = {}
    parents: dict[int, int] = {}
    pending = list(roots)
    while pending:
        pid = pending.pop()
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            for task in Path(f"/proc/{pid}/task").iterdir():
                children = [int(child) for child in (task / "children").read_text().split()]
                pending += children
                parents.update(dict.fromkeys(children, pid))
        except (FileNotFoundError, ProcessLookupError):
            continue
        found[pid] = pages * 4096
    return found, parents


def print_memory(servers: Sequence[Server], name: str) -> None:
    """Print what the pull of a 1 GB layer adds to each server's processes."""
    print("\n| pull of one layer of 1 GB | time | idle, all processes | most above idle in one |")
    print("|---|---|---|---|")
    for server in servers:
        settle()
        roots = [server.pid]
        if isinstance(server, OurServer):
            roots.append(server.spawner_pid())
        with Watch(roots) as watch:
            seconds = server.pull(name)
        server.remove(name)
        idle = sum(watch.idle.values())
        print(
            f"| {server.name} | {seconds:.1f} s | {idle / MIB:.0f} MB "
            f"| {watch.growth()[0] / MIB:.0f} MB |",
            flush=True,
        )


def unmount_below(directory: Path) -> None:
    """Take away what a peer has left mounted."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        target = line.split()[4]
        if target.startswith(f"{directory}/"):
            subprocess.run(["umount", "--lazy", target], check=True)


if __name__ == "__main__":
    sys.exit(main())
