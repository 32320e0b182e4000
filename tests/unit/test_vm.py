"""hack/vm's host side, without a VM: what it hands over, and that no result is a failure."""

from __future__ import annotations

import platform
import tarfile
from pathlib import Path

import pytest

from tests.vm import ci, host, image, machine

ROOT = Path(__file__).resolve().parents[2]
LIMITS = machine.Limits(boot=300.0, job=60.0, grace=180.0)
ABOUT_EIGHT_MINUTES = 8.5 * 60


@pytest.fixture
def disks(tmp_path: Path) -> machine.Disks:
    made = machine.Disks(tmp_path / "project", tmp_path / "results", tmp_path / "console")
    made.results.write_bytes(bytes(10240))
    made.console.write_text("Kernel panic\n")
    return made


def test_the_project_is_handed_over_with_its_job(
    disks: machine.Disks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRISERVER_TEST_CGROUP_DRIVER", "a driver")
    program = tmp_path / "kubelet"
    program.touch(0o755)
    machine._pack(disks.project, machine._job(["-k", "a b"], "tcg", seconds=60), [program])
    with tarfile.open(disks.project) as tar:
        names = tar.getnames()
        assert tar.getmember(f"{machine.JOB}/bin/kubelet").mode == 0o755
        job = {
            name: file.read()
            for name in ("arguments", "environment", "seconds")
            if (file := tar.extractfile(f"{machine.JOB}/{name}")) is not None
        }
    assert (job["arguments"], job["seconds"]) == (b"-k\0a b\0", b"60")
    assert b"CRISERVER_TEST_CGROUP_DRIVER=a driver\0" in job["environment"]
    assert b"PATH=" not in job["environment"]
    assert {"pyproject.toml", "tests/vm/guest/run"} <= set(names)
    assert not any(name.startswith((".git", ".venv")) and name != ".gitignore" for name in names)


@pytest.mark.parametrize(
    ("accelerator", "of_host", "patience"),
    [("tcg", None, [machine.PATIENCE]), ("kvm", None, []), ("tcg", "30", ["30"])],
)
def test_tests_wait_longer_where_processors_are_emulated(
    accelerator: str, of_host: str | None, patience: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CRISERVER_TEST_PATIENCE", raising=False)
    if of_host:
        monkeypatch.setenv("CRISERVER_TEST_PATIENCE", of_host)
    settings = machine._job([], accelerator, seconds=60)["environment"].split("\0")
    told = [
        entry.split("=")[1] for entry in settings if entry.startswith("CRISERVER_TEST_PATIENCE")
    ]
    assert told == patience


def test_a_vm_that_reports_nothing_has_failed(
    disks: machine.Disks, capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine._collect(disks, None) == machine.NO_RESULT
    assert "Kernel panic" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "elapsed", "problem"),
    [
        ("", 10, ""),
        ("", 301, "not come to its job"),
        ("x\nKernel panic - not syncing\n", 10, "panicked"),
        (f"{machine.JOB_BEGINS}\n[  9.1] I/O error, dev vda, sector 2\n", 10, "full?"),
        (machine.JOB_BEGINS, 301, ""),
        (machine.JOB_BEGINS, 541, "was ended"),
    ],
)
def test_a_vm_that_will_not_report_is_not_waited_for(
    said: str, elapsed: float, problem: str
) -> None:
    found = machine._problem(said, elapsed, LIMITS)
    assert problem in found and bool(problem) == bool(found)


@pytest.mark.parametrize(
    ("command", "said"),
    [(["false"], "exit code 1"), (["sh", "-c", "kill -9 $$"], "memory runs out")],
)
def test_an_emulator_that_fails_is_said(
    disks: machine.Disks, command: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    machine._run(command, disks.console.with_name("none"), LIMITS)
    assert said in capsys.readouterr().err


def test_a_machine_without_the_memory_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "MEMINFO", tmp_path / "meminfo")
    host.MEMINFO.write_text("MemTotal: 4194304 kB\nMemAvailable:    1048576 kB\n")
    host.check_memory(1 << 30)
    with pytest.raises(SystemExit, match=r"needs 2048 MiB of memory, and .* says that 1024 MiB"):
        host.check_memory(2 << 30)


def test_a_machine_without_the_disk_space_is_told(tmp_path: Path) -> None:
    host.check_disk(tmp_path, 1, "make room")
    with pytest.raises(SystemExit, match=f"needed below {tmp_path}, .* are free: make room"):
        host.check_disk(tmp_path, 1 << 60, "make room")


def test_a_machine_of_another_architecture_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    host.check_architecture()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(SystemExit, match="this is riscv64"):
        host.check_architecture()


def test_what_ci_runs_is_there_and_bounded() -> None:
    for test in ci.TESTS:
        path, _, function = test.partition("::")
        assert f"def {function}" in (ROOT / path).read_text()
    assert sum(ci.LIMITS) <= ABOUT_EIGHT_MINUTES


@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code_is_the_jobs(disks: machine.Disks, tmp_path: Path, code: int) -> None:
    (tmp_path / "exit-code").write_text(f"{code}\n")
    with tarfile.open(disks.results, "w") as tar:
        tar.add(tmp_path / "exit-code", "./exit-code")
    results = tmp_path / "kept"
    assert machine._collect(disks, results) == code
    assert (results / "console").read_text() == "Kernel panic\n"


def test_an_image_is_known_by_what_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = image.key()
    assert image.key() == before
    monkeypatch.setattr(image, "NODE_PACKAGES", (*image.NODE_PACKAGES, "another"))
    assert image.key() != before
