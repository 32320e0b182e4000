"""The OCI command line, run as a person or another program runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration import bundles, harness

pytestmark = pytest.mark.integration

RUNTIMESHIM = Path(sys.executable).parent / "runtimeshim"


def bundle(directory: Path, args: list[str], **process: Any) -> Path:
    """Write a bundle with its root in place."""
    cgroup = f"/crtest-cli-{os.getpid()}/c"
    bundles.write(directory / "b", bundles.spec(args, cgroup, **process))
    bundles.make_layer(directory / "b/rootfs")
    return directory / "b"


@pytest.fixture(autouse=True)
def _no_cgroup_left() -> Any:
    yield
    assert harness.cgroup_dirs(f"/crtest-cli-{os.getpid()}/c") == []
    harness.remove_cgroups(f"/crtest-cli-{os.getpid()}")


def run(path: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RUNTIMESHIM, "run", "-b", path, "c"],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_run_passes_stdio_and_the_exit_code(tmp_path: Path) -> None:
    done = run(bundle(tmp_path, ["sh", "-c", "cat; echo err >&2; exit 5"]), input="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (5, "in\n", "err\n")


def test_run_passes_signals(tmp_path: Path) -> None:
    script = "trap 'echo got; exit 9' TERM; echo up; while :; do sleep 0.05; done"
    process = subprocess.Popen(
        [RUNTIMESHIM, "run", "-b", bundle(tmp_path, ["sh", "-c", script]), "c"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "got\n"
    assert process.wait() == 9
    process.stdout.close()


@pytest.mark.parametrize(
    ("args", "message"),
    [(["nonesuch"], "executable file not found in $PATH"), ([], "process.args: empty")],
)
def test_run_says_why_not(tmp_path: Path, args: list[str], message: str) -> None:
    done = run(bundle(tmp_path, args))
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_spec_of_its_own_making_runs(tmp_path: Path) -> None:
    bundles.make_layer(tmp_path / "rootfs")
    subprocess.run([RUNTIMESHIM, "spec", "-b", tmp_path], check=True)
    spec = json.loads((tmp_path / "config.json").read_text())
    spec["process"]["args"] = ["sh", "-c", "hostname; grep -c . /proc/self/mountinfo"]
    spec["linux"]["cgroupsPath"] = f"/crtest-cli-{os.getpid()}/c"
    (tmp_path / "config.json").write_text(json.dumps(spec))
    done = run(tmp_path)
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "runtimeshim"
    again = subprocess.run([RUNTIMESHIM, "spec", "-b", tmp_path], capture_output=True, check=False)
    assert again.returncode == 1  # it does not overwrite


def test_features_name_what_is_there() -> None:
    done = subprocess.run([RUNTIMESHIM, "features"], capture_output=True, text=True, check=True)
    features = json.loads(done.stdout)
    assert "CAP_SYS_ADMIN" in features["linux"]["capabilities"]
    assert features["linux"]["cgroup"]["v1"] != features["linux"]["cgroup"]["v2"]
    assert "rro" in features["mountOptions"]


def test_the_version_is_in_the_conventional_form() -> None:
    done = subprocess.run([RUNTIMESHIM, "--version"], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("runtimeshim version ")
    assert second.startswith("spec: 1.")
