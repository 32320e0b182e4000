"""The disk image of the VM: built once from packages, then kept.

A directory `CACHE/KEY` holds the image; KEY is the digest of all that decides its content. Only the
standard library is used, for it runs before anything is installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.vm import host

ROOT = Path(__file__).resolve().parents[2]
GUEST = Path(__file__).parent / "guest"
CACHE = Path("/var/cache/criserver-vm")
SUITE = "bookworm"

HOST_PACKAGES = ("mmdebstrap", "qemu-system-x86", "e2fsprogs", "python3-venv")
# The node itself; what criserver and its tests need is added from hack/test --packages.
NODE_PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "udev", "kmod", "procps", "apparmor", "secilc", "lz4",
    "linux-image-cloud-amd64",
)  # fmt: skip
# Slow when emulated, and of no use in a VM that lives for minutes. apparmor.service compiles the
# profiles of Debian's programs for 12 s; the tests load their own.
MASKED_UNITS = (
    "apparmor.service", "apt-daily.timer", "apt-daily-upgrade.timer", "containerd.service",
    "docker-registry.service", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "fstrim.timer", "podman-auto-update.service",
    "podman-auto-update.timer", "podman-restart.service", "podman.service", "podman.socket",
    "prometheus.service", "systemd-binfmt.service", "systemd-tmpfiles-clean.timer",
)  # fmt: skip
# What the initramfs needs to find the root: all of these are modules in Debian's cloud kernel.
INITRAMFS_MODULES = ("virtio_pci", "virtio_blk", "ext4")

DISK_SIZE = "8G"  # sparse
BUILD_SIZE = 4 << 30  # bytes; the root is there twice at the end
KEPT_SECONDS = 14 * 24 * 3600  # an image of another KEY goes when it was not used for so long


class Image(NamedTuple):
    """What qemu boots."""

    disk: Path
    kernel: Path
    initramfs: Path


def provide(cache: Path) -> Image:
    """Return the image for this checkout; build it first where there is none."""
    host.check_architecture()
    directory = cache / key()
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "lock"):
        _run(str(ROOT / "hack/install-packages"), *HOST_PACKAGES)
        if not directory.exists():
            for broken in cache.glob("building-*"):
                _remove(broken)
            host.check_disk(cache, BUILD_SIZE, "make room, or name another directory by --cache")
            with tempfile.TemporaryDirectory(prefix="building-", dir=cache) as building:
                _build(Path(building))
            _remove_unused(cache)
        os.utime(directory)
    return Image(directory / "root.img", directory / "vmlinuz", directory / "initrd")


def key() -> str:
    """Return the digest of all that decides the image's content."""
    description = _description()
    installed = [description[name] for name in ("project", "build-system")]
    setuptools = description["tool"]["setuptools"]
    installed.append(setuptools)
    # Scripts are copied when the project is installed, the rest is linked.
    installed += [(ROOT / name).read_text() for name in setuptools.get("script-files", ())]
    parts = [Path(__file__).read_text(), json.dumps(installed), *_packages()]
    parts += [path.read_text() for path in sorted(GUEST.glob("boot*"))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _packages() -> list[str]:
    listed = _run(str(ROOT / "hack/test"), "--packages", output=True)
    return [*NODE_PACKAGES, *listed.split()]


def _requirements() -> list[str]:
    """Return the Python packages of the project and its tests."""
    description = _description()
    project = description["project"]
    build = description["build-system"]["requires"]
    return [*project["dependencies"], *project["optional-dependencies"]["test"], *build, "wheel"]


def _description() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _build(work: Path) -> None:
    """Build in `work`, and move the result to where `provide` looks for it."""
    _say(f"building the image in {work.parent}; this takes some minutes")
    wheels = work / "wheels"
    _collect_wheels(work / "venv", wheels)
    _bootstrap(work / "root", wheels)
    result = work / "result"
    result.mkdir()
    for name in ("vmlinuz", "initrd"):
        (found,) = (work / "root/boot").glob(f"{name}*")
        shutil.copy(found, result / name)
    _run("mkfs.ext4", "-q", "-d", str(work / "root"), str(result / "root.img"), DISK_SIZE)
    result.rename(work.parent / key())


def _collect_wheels(venv: Path, wheels: Path) -> None:
    """Get all wheels with Debian's own Python, as the image has it, by this machine's settings."""
    _run("/usr/bin/python3", "-m", "venv", str(venv))
    pip = str(venv / "bin/pip")
    _run(pip, "wheel", "--quiet", "--wheel-dir", str(wheels), *_requirements())


def _bootstrap(root: Path, wheels: Path) -> None:
    """Make the root file system; nothing of this machine's settings is left in it."""
    os.environ["WHEELS"] = str(wheels)
    os.environ["GUEST"] = str(GUEST)
    os.environ["PROJECT"] = str(ROOT)
    os.environ["MASKED_UNITS"] = " ".join(MASKED_UNITS)
    os.environ["INITRAMFS_MODULES"] = "\n".join(INITRAMFS_MODULES)
    os.environ["REQUIREMENTS"] = "\n".join(_requirements())
    options = [f"--aptopt={line}" for line in _apt_settings()]
    options += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
    # It mounts this machine's /dev below the root. In a mount namespace of its own these mounts end
    # with it, however it ends: whoever then removes the root removes nothing but that.
    _run(
        "unshare", "--mount", "--propagation", "private",
        "mmdebstrap", "--quiet", "--mode=root", "--variant=essential", "--format=directory",
        "--aptopt=APT::Install-Recommends false", *options,
        f"--include={','.join(_packages())}",
        f"--setup-hook={GUEST}/boot-before \"$1\"",
        f"--customize-hook={GUEST}/boot-after \"$1\"",
        SUITE, str(root), *_apt_sources(),
    )  # fmt: skip


def _apt_settings() -> list[str]:
    """Return how this machine's apt fetches: proxies, certificates, time-outs."""
    dump = _run("apt-config", "dump", "--no-empty", output=True).splitlines()
    return [line for line in dump if line.startswith("Acquire::") and "IndexTargets" not in line]


def _apt_sources() -> list[str]:
    """Return the files that name this machine's Debian mirrors."""
    etc = Path("/etc/apt")
    files = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    files = [file for file in files if file.suffix in (".list", ".sources") and file.is_file()]
    found = [str(file) for file in files if SUITE in file.read_text()]
    if not found:
        sys.exit(f"hack/vm: no file below {etc} names a mirror of Debian's {SUITE}: add one")
    return found


def _remove_unused(cache: Path) -> None:
    limit = time.time() - KEPT_SECONDS
    for directory in cache.iterdir():
        if (directory / "root.img").exists() and directory.stat().st_mtime < limit:
            shutil.rmtree(directory)


def _remove(directory: Path) -> None:
    """Remove what a build left that was killed; not what is mounted in it from elsewhere."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    if any(line.split()[4].startswith(f"{directory}/") for line in mounts):
        sys.exit(f"hack/vm: something is mounted below {directory}: unmount it first")
    shutil.rmtree(directory)


def _run(*command: str, output: bool = False) -> str:
    """Run a program, whose messages go to stderr. Exits with a message when it fails."""
    stdout = subprocess.PIPE if output else sys.stderr
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stdout, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"hack/vm: {command[0]} failed with exit code {done.returncode}: see above")
    return done.stdout or ""


def _say(text: str) -> None:
    print(f"==> vm: {text}", file=sys.stderr, flush=True)
