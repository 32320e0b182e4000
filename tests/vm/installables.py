"""What tests/vm/test_install.py installs: made on this machine, since the VM has no network.

Two versions, each as a bundle and as a Debian package. The second has another number, another
protocol between daemon and shims, and otherwise the same code. Kept in build/vm, by a digest of the
sources. Only the standard library is used, as in image.py.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MADE = ROOT / "build/vm"
SOURCES = (
    "api", "criserver", "imageservice", "podsandbox", "runtimeshim", "deploy", "docs",
    "pyproject.toml", "README.md",
)  # fmt: skip
VERSION, NEXT_VERSION = 'version = "0.1.0"', 'version = "0.1.1"'
PROTOCOL, NEXT_PROTOCOL = "\nPROTOCOL = 1\n", "\nPROTOCOL = 2\n"


def wanted(arguments: Sequence[str]) -> bool:
    """Tell whether pytest's `arguments` collect the test that needs them."""
    paths = [argument for argument in arguments if not argument.startswith("-")]
    return any("test_install" in path or (ROOT / path).is_dir() for path in paths)


def provide() -> None:
    """Make them, unless they are there for the sources as they are."""
    MADE.parent.mkdir(exist_ok=True)
    with (MADE.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _provide()


def _provide() -> None:
    stamp, key = MADE / "key", _key()
    if stamp.exists() and stamp.read_text() == key:
        return
    print("==> vm: making what is to be installed", file=sys.stderr, flush=True)
    shutil.rmtree(MADE, ignore_errors=True)
    MADE.mkdir(parents=True)
    later = MADE / "source"
    _copy_later(later)
    dependencies = _dependencies()
    _run(ROOT / "deploy/bundle", "--dependencies", dependencies, MADE / "bundle-1")
    _run(later / "deploy/bundle", "--dependencies", dependencies, MADE / "bundle-2")
    for number in ("1", "2"):
        bundle, package = MADE / f"bundle-{number}", MADE / f"criserver-{number}.deb"
        _run(later / "deploy/debian/build", "--bundle", bundle, package)
    shutil.rmtree(later)
    stamp.write_text(key)


def _dependencies() -> Path:
    """Return a bundle with the packages that pyproject.toml asks for: PyPI takes a minute."""
    asked = (ROOT / "pyproject.toml").read_bytes()
    kept = ROOT / "build/dependencies" / hashlib.sha256(asked).hexdigest()[:16]
    if not kept.exists():
        shutil.rmtree(kept.parent, ignore_errors=True)
        _run(ROOT / "deploy/bundle", kept)
    return kept


def _files() -> list[Path]:
    found = [file for name in SOURCES for file in [ROOT / name, *(ROOT / name).rglob("*")]]
    return sorted(file for file in found if file.is_file() and file.suffix != ".pyc")


def _key() -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for file in _files():
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _copy_later(target: Path) -> None:
    """Copy the sources as a later version."""
    for file in _files():
        copy = target / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    for name, old, new in (
        ("pyproject.toml", VERSION, NEXT_VERSION),
        ("runtimeshim/wire.py", PROTOCOL, NEXT_PROTOCOL),
    ):
        text = (target / name).read_text()
        if old not in text:
            sys.exit(f"hack/vm: tests/vm/installables.py: {name} has no {old.strip()!r}: adapt it")
        (target / name).write_text(text.replace(old, new))


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        sys.exit(f"hack/vm: {command[0]} failed with exit code {done.returncode}: see above")
