"""The VM: qemu with the image, the project as a read-only disk, and a disk for the results."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import termios
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.vm import host
from tests.vm.image import ROOT, Image

CPUS = 2
MEMORY = 2 << 30  # bytes
EMULATOR_MEMORY = 256 << 20  # bytes that qemu takes itself, most of them for translated code
RESULTS_SIZE = 64 << 20  # bytes, sparse: journal and what the tests leave for the host
WORK_SIZE = 1 << 30  # bytes in DIRECTORY, for the checkout and for what the VM writes to its root
DIRECTORY = Path("/var/tmp")

# What the console says, by the guest's job and by the kernel (kernel/panic.c, block/blk-core.c).
JOB_BEGINS, PANIC, WRITE_ERROR = "vm: the job begins", "Kernel panic", "I/O error, dev vda"
# The exit code when the VM did not report one of its own, as `timeout` and docker have it.
NO_RESULT = 125
CONSOLE_LINES = 40

# What is in a checkout, and not part of the project.
EXCLUDED = (".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis")
JOB = "tests/vm/guest"  # where the files of the job are, and a directory of programs
# How many times longer tests wait for what they wait for, where processors are emulated.
PATIENCE = "5"


class Disks(NamedTuple):
    """The two disks of a run, and the console's log."""

    project: Path
    results: Path
    console: Path


class Options(NamedTuple):
    """How a VM is booted."""

    accelerator: str  # of qemu
    lsm: str  # the kernel's one security module of those that exclude each other


class Limits(NamedTuple):
    """For how long a VM is waited for, in seconds."""

    boot: float  # until its job begins
    job: float  # then pytest is interrupted
    grace: float  # for what is done after a job that was given up for lack of time


def check_host() -> None:
    """Exit with a message on a machine that has no room for the VM."""
    host.check_memory(MEMORY + EMULATOR_MEMORY)
    host.check_disk(DIRECTORY, WORK_SIZE, "make room")


def test(
    image: Image,
    arguments: Sequence[str],
    options: Options,
    programs: Sequence[Path] = (),
    *,
    limits: Limits,
    results: Path | None,
) -> int:
    """Run pytest with `arguments` in a fresh VM; its output goes to stdout. Returns its exit code.

    `programs` are files of this machine that are in its PATH there.
    `results` is a directory for what the VM leaves: console, journal, and what tests put there.
    """
    job = _job(arguments, options.accelerator, seconds=int(limits.job))
    with _disks(job, programs) as disks:
        _run(_qemu(image, disks, options, "test"), disks.console, limits)
        return _collect(disks, results)


def _run(command: Sequence[str], console: Path, limits: Limits) -> None:
    """Run a VM to its end, or to the moment when it is clear that nothing will come of it."""
    began = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as qemu:
        try:
            while qemu.poll() is None:
                problem = _problem(_text(console), time.monotonic() - began, limits)
                if problem:
                    _say(problem)
                    return
                with contextlib.suppress(subprocess.TimeoutExpired):
                    qemu.wait(timeout=1.0)
        finally:
            qemu.kill()
    if qemu.returncode == -signal.SIGKILL:
        _say("qemu was killed, as the kernel does when memory runs out: see dmesg")
    elif qemu.returncode != 0:
        _say(f"qemu failed with exit code {qemu.returncode}")


def _problem(console: str, elapsed: float, limits: Limits) -> str:
    """Say why a VM need not be waited for any longer, "" if it is to be."""
    if PANIC in console:
        return "the kernel of the VM has panicked"
    if WRITE_ERROR in console:
        return f"the VM cannot write to its disk: is {DIRECTORY} full?"
    if JOB_BEGINS not in console and elapsed > limits.boot:
        return f"the VM has not come to its job within {limits.boot:.0f} s"
    if elapsed > sum(limits):
        return f"the VM was ended: its job was to take {limits.job / 60:.0f} minutes"
    return ""


def _text(console: Path) -> str:
    """Return what the console has said so far; nothing before qemu has made the file."""
    return console.read_text(errors="replace") if console.exists() else ""


def shell(image: Image, options: Options) -> int:
    """Give this terminal a root shell in a fresh VM."""
    if not sys.stdin.isatty():
        sys.exit("hack/vm: a shell needs a terminal")
    with _disks(_job((), options.accelerator, seconds=0), ()) as disks, _raw_terminal():
        return subprocess.run(_qemu(image, disks, options, "shell"), check=False).returncode


def _qemu(image: Image, disks: Disks, options: Options, job: str) -> list[str]:
    """Return the command line; the VM has no network."""
    append = (
        "root=/dev/vda rw console=ttyS0 quiet panic=-1 net.ifnames=0 systemd.show_status=no "
        # An emulator that gets little CPU time loses timer ticks: the kernel's check would panic.
        "no_timer_check "
        # Code at the same addresses in every process is translated once: half the work of an exec.
        "norandmaps "
        # What keeps speculation in check, which an emulator has none of, is a twelfth of its work.
        "mitigations=off "
        f"security={options.lsm} "
        f"systemd.getty_auto=no vm.job={job}"
    )
    command = [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
        "-accel", options.accelerator,
        # la57: five levels of page tables cost an emulator a fifth more to walk
        "-cpu", "max,la57=off", "-smp", str(CPUS), "-m", f"{MEMORY >> 20}M",
        "-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", append,
        "-chardev", f"file,id=console,path={disks.console}",
        "-chardev", "stdio,id=job,signal=off",
        "-serial", "chardev:console", "-serial", "chardev:job",
        "-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng",
    ]  # fmt: skip
    command += _drive("root", image.disk, "snapshot=on,werror=report")
    command += _drive("project", disks.project, "readonly=on")
    command += _drive("results", disks.results, "cache=unsafe")
    return command


def _drive(name: str, path: Path, option: str) -> list[str]:
    return [
        "-drive", f"if=none,id={name},format=raw,file={path},{option}",
        "-device", f"virtio-blk-pci,drive={name},serial={name}",
    ]  # fmt: skip


@contextlib.contextmanager
def _disks(job: Mapping[str, str], programs: Sequence[Path]) -> Iterator[Disks]:
    """Write the project with its job to a disk that is a tar, and make an empty one for results."""
    with tempfile.TemporaryDirectory(prefix="criserver-vm-", dir=DIRECTORY) as name:
        directory = Path(name)
        os.environ["TMPDIR"] = name  # where qemu keeps what the VM writes to its root
        disks = Disks(directory / "project", directory / "results", directory / "console")
        _pack(disks.project, job, programs)
        with disks.results.open("wb") as file:
            file.truncate(RESULTS_SIZE)
        yield disks


def _job(arguments: Sequence[str], accelerator: str, *, seconds: int) -> dict[str, str]:
    """Return the files that tell the guest what to do: name -> content."""
    settings = {"CRISERVER_TEST_PATIENCE": PATIENCE} if accelerator == "tcg" else {}
    settings |= {name: value for name, value in os.environ.items() if _is_setting(name)}
    return {
        "arguments": "".join(f"{argument}\0" for argument in arguments),
        "environment": "".join(f"{name}={value}\0" for name, value in settings.items()),
        "seconds": str(seconds),
    }


def _pack(disk: Path, job: Mapping[str, str], programs: Sequence[Path]) -> None:
    """Write the project, the files of the job, and what is to be in the guest's PATH."""
    directory = disk.parent / "job"
    directory.mkdir()
    for name, content in job.items():
        (directory / name).write_text(content)
    with tarfile.open(disk, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(ROOT.iterdir()):
            if path.name not in EXCLUDED:
                tar.add(path, path.name, filter=_as_root)
        for path in directory.iterdir():
            tar.add(path, f"{JOB}/{path.name}", filter=_as_root)
        for program in programs:
            tar.add(program.resolve(), f"{JOB}/bin/{program.name}", filter=_as_root)


def _is_setting(variable: str) -> bool:
    """Tell whether an environment variable is one of the tests' own."""
    return variable.startswith("CRISERVER_TEST_")


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def _collect(disks: Disks, results: Path | None) -> int:
    """Read what the VM has left; returns the exit code of its job."""
    directory = results or disks.results.parent / "read"
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(disks.results) as tar:
            # The filter came with Python 3.11.4; what it refuses, our own VM does not write.
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda entry, _: entry)
            tar.extractall(directory)
        code = int((directory / "exit-code").read_text())
    except (tarfile.TarError, OSError, ValueError) as err:
        _say(f"the VM has left no result ({err}); the end of its console:")
        print("\n".join(_text(disks.console).splitlines()[-CONSOLE_LINES:]), file=sys.stderr)
        code = NO_RESULT
    if results is not None:
        (results / "console").write_text(_text(disks.console))
    return code


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Hand every key to the VM."""
    saved = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, saved)


def _say(text: str) -> None:
    print(f"==> vm: {text}", file=sys.stderr, flush=True)
