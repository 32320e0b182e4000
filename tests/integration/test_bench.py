"""hack/bench: it measures every runtime of the machine, and leaves nothing, however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.operations import CATALOGUE
from tests.bench.plan import QUICK
from tests.integration import leaks
from tests.integration.daemon import wait_for

BENCH = Path(__file__).parents[2] / "hack/bench"
SECONDS = 240.0
OURS = ["criserver, built-in", "criserver, CNI"]


def start(*options: object) -> subprocess.Popen[str]:
    # In a session of its own, to which the test is what the terminal's Ctrl-C is.
    return subprocess.Popen(
        [str(BENCH), "--quick", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(*options: object) -> str:
    """Run to the end; returns the tables. Nothing may be left."""
    with start(*options) as bench:
        tables, said = bench.communicate(timeout=SECONDS)
    assert bench.returncode == 0, said
    assert_gone(bench.pid)
    return tables


def remains(pid: int) -> list[str]:
    """All that a benchmark with this process id has on the machine."""
    name, bridge = f"cri-{pid}-", f"cri{pid % 10**7}"
    processes = leaks.named_processes(name) - {os.getpid()}
    found = [
        *(f"{other} {leaks.command(leaks.PROC / str(other))}" for other in processes),
        *(mount for mount in leaks.mounts() if name in mount),
        *(link for link in leaks.links() if link.startswith((f"{bridge}n", f"{bridge}p"))),
        *(str(path) for path in leaks.directories_below(leaks.CGROUPS) if name in path.name),
        *(line for line in leaks.nftables() if name in line or f"{bridge}n" in line),
    ]
    for top in ("/run", "/var/lib"):
        found += map(str, Path(top).glob(f"{name}*"))
    return found


def assert_gone(pid: int) -> None:
    with contextlib.suppress(AssertionError):  # named below
        wait_for(lambda: remains(pid) == [], "what was started to be gone", 10.0)
    assert remains(pid) == []


def test_every_operation_of_every_runtime_is_in_the_table_and_the_file(tmp_path: Path) -> None:
    written = tmp_path / "results.json"
    tables = run("--only", "lifecycle", "--only", "burst", "--json", written)
    found = json.loads(written.read_text())
    (peer,) = set(found["runtimes"]) - set(OURS)
    assert peer.startswith("containerd ")
    expected = {
        (operation.title, runtime)
        for operation in CATALOGUE.values()
        if operation.group in ("lifecycle", "burst")
        for runtime in (*OURS, peer)
    }
    assert {(row["operation"], row["runtime"]) for row in found["results"]} == expected
    assert all(len(row["samples"]) >= 1 and row["median"] > 0 for row in found["results"])
    for title, runtime in expected:
        assert f"| {title} " in tables
        assert runtime in tables
    assert {"RunPodSandbox", "CreateContainer", "StartContainer"} <= set(found["stages"])


def test_repeated_runs_are_counted_together(tmp_path: Path) -> None:
    written = tmp_path / "results.json"
    run("--only", "lifecycle", "--network", "built-in", "--repeat", 2, "--json", written)
    found = json.loads(written.read_text())["results"]
    turns = {len(row["turns"]) for row in found if row["operation"] == "RunPodSandbox"}
    assert turns == {2 * QUICK.cycles}


def test_a_fault_is_told_in_words() -> None:
    lines = run("--only", "faults", "--network", "built-in").splitlines()
    (killed,) = (line for line in lines if line.startswith("| shim killed "))
    assert [cell.strip() for cell in killed.split("|")][2:4] == ["running", "exited, 255, Error"]


def test_a_picture_is_drawn_in_both_formats(tmp_path: Path) -> None:
    png, svg = tmp_path / "ratios.png", tmp_path / "ratios.svg"
    run("--only", "oci", "--plot", png, "--plot", svg)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text()


def interrupted(number: signal.Signals, moment: Callable[[str], bool], *options: str) -> int:
    """Send a signal to all of a running benchmark at a moment of what it says; its exit code."""
    with start(*options) as bench:
        assert bench.stderr is not None
        said = ""
        while not moment(said):
            line = bench.stderr.readline()
            assert line, said
            said = line
        time.sleep(0.1)  # into the middle of it
        os.killpg(bench.pid, number)
        bench.communicate(timeout=SECONDS)
    assert_gone(bench.pid)
    return bench.returncode


def test_ctrl_c_leaves_nothing() -> None:
    code = interrupted(signal.SIGINT, lambda line: "burst: round 1" in line, "--only", "burst")
    assert code in (-signal.SIGINT, 130)


def test_ctrl_c_in_a_repeated_run_leaves_nothing() -> None:
    code = interrupted(
        signal.SIGINT, lambda line: "run 2 of 2" in line, "--only", "lifecycle", "--repeat", "2"
    )
    assert code in (-signal.SIGINT, 130)


def test_the_end_of_its_terminal_leaves_nothing() -> None:
    code = interrupted(
        signal.SIGTERM, lambda line: "starting containerd" in line, "--only", "lifecycle"
    )
    assert code == 128 + signal.SIGTERM
