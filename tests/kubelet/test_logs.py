"""/containerLogs of the kubelet, and its rotation of logs."""

from __future__ import annotations

import gzip
import http.client
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.daemon import wait_for
from tests.kubelet.kubelet import Kubelet, containers, has_ended, has_restarted, is_running
from tests.kubelet.manifests import FOREVER, pod, shell


def log(kubelet: Kubelet, name: str, query: str = "") -> str:
    return kubelet.get(f"/containerLogs/tests/{name}/main?{query}").decode()


def test_a_log_whole_and_in_parts(kubelet: Kubelet) -> None:
    script = "for i in 1 2 3; do echo out $i; echo err $i >&2; sleep 0.1; done; printf unfinished"
    name = kubelet.put(pod(shell(script), restartPolicy="Never"))
    kubelet.until(name, has_ended, "its end")
    whole = log(kubelet, name)
    lines = [f"{stream} {number}\n" for number in (1, 2, 3) for stream in ("out", "err")]
    assert whole == "".join(lines) + "unfinished"
    assert log(kubelet, name, "tailLines=2") == "err 3\nunfinished"
    assert log(kubelet, name, "limitBytes=5") == "out 1"
    stamped = log(kubelet, name, "timestamps=true").splitlines()
    assert all(
        re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(Z|[+-]\d\d:\d\d) ", one) for one in stamped
    )
    since = stamped[-1].split()[0]
    assert log(kubelet, name, f"sinceTime={since.replace('+', '%2B')}") == "unfinished"


def test_a_log_is_followed_to_its_end(kubelet: Kubelet) -> None:
    script = "for i in $(seq 30); do echo $i; sleep 0.1; done"
    name = kubelet.put(pod(shell(script), restartPolicy="Never"))
    kubelet.until(name, lambda one: is_running(one) or has_ended(one), "its start")
    assert log(kubelet, name, "follow=true") == "".join(f"{n}\n" for n in range(1, 31))


def test_the_log_of_the_attempt_before(kubelet: Kubelet) -> None:
    script = (
        f"[ -e /data/once ] && {{ echo second; {FOREVER}; }}; touch /data/once; echo first; exit 1"
    )
    main = shell(script, volumeMounts=[{"name": "data", "mountPath": "/data"}])
    name = kubelet.put(pod(main, volumes=[{"name": "data", "emptyDir": {}}]))
    kubelet.until(name, has_restarted(1), "a restart")
    assert log(kubelet, name, "previous=true") == "first\n"
    assert log(kubelet, name) == "second\n"


def test_a_long_line_is_one_line(kubelet: Kubelet) -> None:
    length = 100_000
    script = f"head -c {length} /dev/zero | tr '\\0' x; echo; echo after"
    name = kubelet.put(pod(shell(script), restartPolicy="Never"))
    kubelet.until(name, has_ended, "its end")
    assert log(kubelet, name) == "x" * length + "\nafter\n"


@pytest.fixture
def rotating(kubelet: Kubelet) -> Iterator[Kubelet]:
    kubelet.restart(
        containerLogMaxSize="20Ki", containerLogMaxFiles=4, containerLogMonitorInterval="3s"
    )
    yield kubelet
    kubelet.restart()


def test_rotation_loses_no_line(rotating: Kubelet) -> None:
    kubelet = rotating
    count = 3000
    script = (
        f"i=0; while [ $i -lt {count} ]; do i=$((i+1)); echo line $i; usleep 4000; done; {FOREVER}"
    )
    name = kubelet.put(pod(shell(script)))
    status = kubelet.until(name, is_running, "its start")
    directory = next(kubelet.runtime.log_directory.glob(f"*_{name}_*/main"))
    wait_for(lambda: f"line {count}\n" in log(kubelet, name), "the last line", 60.0)
    wait_for(lambda: len(list(directory.iterdir())) == 4, "the rotated files", 30.0)
    kept = [int(one) for one in re.findall(r"line (\d+)\n", whole(directory))]
    assert kept == list(range(kept[0], count + 1))
    assert len(kept) > 1000
    assert containers(kubelet.pods()[name]) == containers(status)


def whole(directory: Path) -> str:
    """What the files of a log hold, from the oldest to the newest: `0.log` is the last."""
    files = sorted(directory.iterdir(), key=lambda path: (path.name == "0.log", path.name))
    return "".join(
        (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
        for path in files
    )


def test_a_log_that_is_not_there(kubelet: Kubelet) -> None:
    status, _ = kubelet.request("/containerLogs/tests/nobody/main")
    assert status == http.client.NOT_FOUND
