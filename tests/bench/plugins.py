"""What the CNI plugins take by themselves, beside our RunPodSandbox and StopPodSandbox by them.

    .venv/bin/python -m tests.bench.plugins [--rounds 30]
    .venv/bin/python -m tests.bench.plugins --pods 60 [--rounds 3]

Run as root. The plugins are called by hand, as the spec has it, in a network namespace of `ip
netns` with the daemon's own configuration, in turns with the daemon. Prints the median and the
least tenth of the milliseconds, and by hand the processor time.

With --pods: the ADDs of so many pods by hand, 8 at a time, in turns with so many pods of one
container that our daemons and containerd start. Prints the milliseconds of a pod, the time of all
divided by their number, and of by hand the processor's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from api.cri import api_pb2 as cri
from tests.bench.client import SLEEP
from tests.bench.operations import BUILTIN, CNI
from tests.bench.parallel import AT_ONCE, at_once
from tests.bench.peers import Containerd
from tests.bench.plan import PAUSE_SECONDS
from tests.bench.runtimes import Criserver, Runtime
from tests.bench.shapes import Shelf
from tests.integration.daemon import PLUGINS

T = TypeVar("T")
Times = dict[str, list[tuple[float, float]]]  # what -> (milliseconds, of the processor)

WARM_UP = 2  # rounds


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="Measure CNI plugins by hand, and by criserver.")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--pods", type=int)
    options = parser.parse_args()
    with contextlib.ExitStack() as undo:
        directory = undo.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        shelf = Shelf(Path(directory) / "registry")
        undo.callback(shelf.close)
        ours = Criserver(CNI, shelf.registry, cri.POD)
        undo.callback(ours.close)
        ours.start()
        if options.pods is None:
            show(measure(ours, options.rounds or 30))
            return
        builtin = Criserver(BUILTIN, shelf.registry, cri.POD)
        undo.callback(builtin.close)
        builtin.start()
        peer = Containerd("runc", 0, shelf, cri.POD, Path("/run"))
        undo.callback(peer.close)
        peer.start()
        runtimes = [ours, builtin, peer]
        show(bursts(ours, runtimes, shelf.small, options.pods, options.rounds or 3))


def measure(ours: Criserver, rounds: int) -> Times:
    """By hand and by the daemon, in turns."""
    (conflist,) = ours.daemon.cni_conf_dir.glob("*.conflist")
    config = json.loads(conflist.read_text())
    times: Times = {}
    for number in range(rounds + WARM_UP):
        found: Times = {}
        by_hand(config, f"bench{os.getpid()}n{number}", found)
        time.sleep(PAUSE_SECONDS)
        by_daemon(ours, found)
        if number >= WARM_UP:
            for what, values in found.items():
                times.setdefault(what, []).extend(values)
    return times


def bursts(ours: Criserver, runtimes: list[Runtime], image: str, pods: int, rounds: int) -> Times:
    """Many pods, 8 at a time: their ADDs by hand, and all of them by each runtime, in turns."""
    (conflist,) = ours.daemon.cni_conf_dir.glob("*.conflist")
    config = json.loads(conflist.read_text())
    times: Times = {}
    for runtime in runtimes:
        runtime.client.pull(image)
    for number in range(rounds):
        spent = adds_by_hand(config, [f"bench{os.getpid()}n{number}p{pod}" for pod in range(pods)])
        times.setdefault("by hand: ADD", []).append(spent)
        for runtime in runtimes:
            client = runtime.client
            time.sleep(PAUSE_SECONDS)
            began = time.perf_counter()
            at_once(AT_ONCE, lambda _, c=client: c.run(image, *SLEEP), range(pods))  # type: ignore[misc]
            spent = (time.perf_counter() - began) * 1000 / pods, 0.0
            times.setdefault(runtime.name, []).append(spent)
            for pod in client.pods():
                client.stop_pod(pod.id)
                client.remove_pod(pod.id)
    return times


def adds_by_hand(config: dict[str, Any], names: list[str]) -> tuple[float, float]:
    """ADD all plugins for each name, 8 names at a time; returns milliseconds of one of them."""
    results: dict[str, dict[str, Any]] = {}

    def add(name: str) -> None:
        for plugin in config["plugins"]:
            document = plugin_input(config, plugin, results.get(name))
            results[name] = json.loads(call(plugin["type"], "ADD", name, document, {}))

    with contextlib.ExitStack() as undo:
        for name in names:
            undo.enter_context(namespace(name))
        before, began = processor(), time.perf_counter()
        at_once(AT_ONCE, add, names)
        spent = (time.perf_counter() - began) * 1000 / len(names)
        used = (processor() - before) / len(names)
        for name in names:
            for plugin in reversed(config["plugins"]):
                call(plugin["type"], "DEL", name, plugin_input(config, plugin, results[name]), {})
    return spent, used


def by_hand(config: dict[str, Any], name: str, times: Times) -> None:
    """ADD and DEL of every plugin, in a namespace that is new."""
    result: dict[str, Any] | None = None
    with namespace(name):
        for plugin in config["plugins"]:
            document = plugin_input(config, plugin, result)
            result = json.loads(call(plugin["type"], "ADD", name, document, times))
        time.sleep(PAUSE_SECONDS)
        for plugin in reversed(config["plugins"]):
            call(plugin["type"], "DEL", name, plugin_input(config, plugin, result), times)


@contextlib.contextmanager
def namespace(name: str) -> Iterator[None]:
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def plugin_input(config: dict[str, Any], plugin: dict[str, Any], result: object) -> bytes:
    document = {key: value for key, value in plugin.items() if key != "capabilities"}
    document |= {"name": config["name"], "cniVersion": config["cniVersion"]}
    return json.dumps(document | ({"prevResult": result} if result else {})).encode()


def call(plugin: str, command: str, name: str, document: bytes, times: Times) -> bytes:
    """Run a plugin, and note its times; returns its answer."""
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": name,
        "CNI_NETNS": f"/run/netns/{name}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(PLUGINS),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    before = processor()
    began = time.perf_counter()
    done = subprocess.run(
        [PLUGINS / plugin], env=env, input=document, stdout=subprocess.PIPE, check=True
    )
    spent = (time.perf_counter() - began) * 1000, processor() - before
    times.setdefault(f"by hand: {plugin} {command}", []).append(spent)
    return done.stdout


def processor() -> float:
    """The milliseconds of processor time of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) * 1000


def by_daemon(ours: Criserver, times: Times) -> None:
    client = ours.client
    config = client.pod_config()
    pod = timed(times, "RunPodSandbox", lambda: client.run_pod(config))
    time.sleep(PAUSE_SECONDS)
    timed(times, "StopPodSandbox", lambda: client.stop_pod(pod))
    for operation, stages in json.loads(
        client.pod_status(pod, verbose=True).info["timings"]
    ).items():
        for stage, ns in stages.items():
            times.setdefault(f"  {operation}: {stage}", []).append((ns / 1e6, 0.0))
    client.remove_pod(pod)


def timed(times: Times, what: str, work: Callable[[], T]) -> T:
    began = time.perf_counter()
    answer = work()
    times.setdefault(what, []).append(((time.perf_counter() - began) * 1000, 0.0))
    return answer


def show(times: Times) -> None:
    print(f"{'ms':36} {'median':>8} {'10 %':>8} {'CPU':>8}")
    for what, values in times.items():
        spent = sorted(wall for wall, _ in values)
        cpu = statistics.median(cpu for _, cpu in values)
        print(
            f"{what:36} {statistics.median(spent):8.2f} {spent[len(spent) // 10]:8.2f}"
            + (f" {cpu:8.2f}" if cpu else "")
        )


if __name__ == "__main__":
    main()
