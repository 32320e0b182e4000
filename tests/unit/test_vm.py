"""hack/vm's host side, without a VM: what it hands over, and that no result is a failure."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.vm import image, machine


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
        (machine.JOB_BEGINS, 301, ""),
        (machine.JOB_BEGINS, 600, "was ended"),
    ],
)
def test_a_vm_that_will_not_report_is_not_waited_for(
    said: str, elapsed: float, problem: str
) -> None:
    found = machine._problem(said, elapsed, seconds=60)
    assert problem in found and bool(problem) == bool(found)


def test_a_program_that_cannot_be_qemu_is_said(
    disks: machine.Disks, capsys: pytest.CaptureFixture[str]
) -> None:
    machine._run(["false"], disks.console.with_name("none"), 60)
    assert "exit code 1" in capsys.readouterr().err


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
