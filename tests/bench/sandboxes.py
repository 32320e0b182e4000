"""RunPodSandbox, StopPodSandbox and RemovePodSandbox: medians, alone and beside many pods.

    .venv/bin/python -m tests.bench.sandboxes [--rounds N] [--standing 10,300] [--cni]

Prints one table: milliseconds for each operation, one at a time, with so many other pods there; and
how much slower it is than beside the fewest. With --cni the pods get Debian's bridge, host-local
and portmap plugins instead of the built-in network. Run as root, on a machine that does nothing
else.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from api.cri import api_pb2 as cri
from tests.integration.daemon import Daemon
from tests.integration.pods import Pods

OPERATIONS = ("RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "PodSandboxStatus", "List")


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40, help="how often each is measured")
    parser.add_argument("--standing", default="10,300", help="how many other pods there are")
    parser.add_argument("--cni", action="store_true", help="use Debian's CNI plugins")
    parser.add_argument(
        "--private-pid", action="store_true", help="as the kubelet: no shared PID namespace"
    )
    options = parser.parse_args(args)
    daemon = Daemon()
    try:
        # A /24 has no room for 300 pods.
        text = daemon.config.read_text().replace(".0/24", ".0/22")
        daemon.config.write_text(text)
        if options.cni:
            daemon.use_cni()
        daemon.start()
        pods = Pods(daemon)
        table = []
        for count in map(int, options.standing.split(",")):
            while len(pods.pods()) < count:
                pods.run_pod(config(pods, private=options.private_pid))
            table.append((count, measure(pods, options.rounds, private=options.private_pid)))
        show(table)
    finally:
        daemon.close()
    return 0


def config(pods: Pods, *, private: bool) -> cri.PodSandboxConfig:
    pid = cri.CONTAINER if private else cri.POD
    context = cri.LinuxSandboxSecurityContext(namespace_options=cri.NamespaceOption(pid=pid))
    return pods.config(linux=cri.LinuxPodSandboxConfig(security_context=context))


def measure(pods: Pods, rounds: int, *, private: bool) -> dict[str, float]:
    """The median of each operation in milliseconds."""
    seconds: dict[str, list[float]] = {name: [] for name in OPERATIONS}

    def timed(name: str, call: Callable[[], object]) -> object:
        began = time.perf_counter()
        answer = call()
        seconds[name].append(time.perf_counter() - began)
        return answer

    for _ in range(rounds):
        wanted = config(pods, private=private)
        pod = str(timed("RunPodSandbox", lambda wanted=wanted: pods.run_pod(wanted)))
        timed("PodSandboxStatus", lambda pod=pod: pods.pod_status(pod))
        timed("List", pods.pods)
        timed("StopPodSandbox", lambda pod=pod: pods.stop_pod(pod))
        timed("RemovePodSandbox", lambda pod=pod: pods.remove_pod(pod))
    return {name: statistics.median(values) * 1000 for name, values in seconds.items()}


def show(table: list[tuple[int, dict[str, float]]]) -> None:
    """Print the medians in milliseconds, and beside the first row's how many times slower."""
    print("pods there", *(f"{name:>22}" for name in OPERATIONS))
    fewest = table[0][1]
    for count, medians in table:
        cells = (
            f"{medians[name]:9.1f} ms ({medians[name] / fewest[name]:5.2f}x)" for name in OPERATIONS
        )
        print(f"{count:10}", *(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
