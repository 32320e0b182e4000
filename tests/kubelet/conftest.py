"""A kubelet above a daemon of this session; run by `hack/kubelet-test`."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import images
from tests.integration.conftest import collect_ignore_glob as collect_ignore_glob
from tests.integration.conftest import nothing_is_left as nothing_is_left
from tests.integration.conftest import registry as registry
from tests.integration.daemon import Daemon
from tests.integration.registry import Registry
from tests.kubelet.containerd import Containerd
from tests.kubelet.kubelet import Kubelet, Runtime


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kubelet", help="the kubelet's path; else it is looked for in PATH")
    parser.addoption(
        "--runtime",
        choices=["criserver", "containerd"],
        default="criserver",
        help="what is below the kubelet: this project's daemon, or Debian's containerd to compare",
    )
    parser.addoption(
        "--gate",
        action="append",
        default=[],
        help="a feature gate that the kubelet has on in every test, EventedPLEG for example",
    )
    parser.addoption("--logs", type=Path, help="a directory that kubelet's and runtime's log go to")


def pytest_collection_modifyitems(config: pytest.Config) -> None:
    """Say once, and before anything is started, that there is no kubelet."""
    wanted = config.getoption("--kubelet") or "kubelet"
    if shutil.which(wanted) is None:
        pytest.exit(
            f"{wanted} cannot be run: put a kubelet into PATH, or give --kubelet PATH", returncode=2
        )


@pytest.fixture(scope="session")
def program(pytestconfig: pytest.Config) -> Path:
    return Path(shutil.which(pytestconfig.getoption("--kubelet") or "kubelet") or "")


@pytest.fixture(scope="session")
def runtime(pytestconfig: pytest.Config, registry: Registry) -> Iterator[Runtime]:
    """The runtime of the session, which pulls `registry.test/…` from the session's registry."""
    images.push(registry.address, "cri/busybox", images.busybox())
    with contextlib.ExitStack() as stack:
        running = _make_runtime(pytestconfig.getoption("--runtime"), registry)
        stack.callback(running.close)
        running.start()
        yield running


def _make_runtime(name: str, registry: Registry) -> Runtime:
    if name == "containerd":
        return Containerd(registry)
    made = Daemon()
    (made.certs_dir / "registry.test").mkdir()
    (made.certs_dir / "registry.test/hosts.toml").write_text(
        f'server = "http://{registry.address}"\n'
    )
    return made


@pytest.fixture(scope="session")
def kubelet(pytestconfig: pytest.Config, program: Path, runtime: Runtime) -> Iterator[Kubelet]:
    """The kubelet of the session, which each test leaves running with the usual settings."""
    running = Kubelet(program, runtime, pytestconfig.getoption("--gate"))
    with contextlib.ExitStack() as stack:
        stack.callback(_keep_logs, pytestconfig.getoption("--logs"), running.log, runtime.log)
        stack.callback(running.close)
        running.start()
        yield running


def _keep_logs(directory: Path | None, *logs: Path) -> None:
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        for log in logs:
            shutil.copy(log, directory)


@pytest.fixture(autouse=True)
def no_pods_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Begin the end of the test's pods; the next test need not wait for it."""
    yield
    if "kubelet" in request.fixturenames:
        kubelet = request.getfixturevalue("kubelet")
        for manifest in kubelet.manifests.iterdir():
            manifest.unlink()
