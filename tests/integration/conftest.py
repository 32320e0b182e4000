"""Fixtures of the integration tests: they need root on Linux, and fail without.

Nothing is skipped: a machine that cannot run these tests has not run them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from runtimeshim.linux import cgroups
from tests.integration import harness, leaks, stream_commands
from tests.integration.daemon import Daemon
from tests.integration.image_fixtures import Images, running_images
from tests.integration.odd_registry import OddRegistry, Opener, odd_registry
from tests.integration.pods import IMAGE, Pods
from tests.integration.registry import Registry
from tests.integration.stream_clients import spdy_command, websocket_command

HERE = Path(__file__).parent
# Links, cgroups and rules of the whole machine are compared, so sessions tell each other of theirs.
SESSIONS_LOCK = Path("/run/criserver-tests.lock")
OTHER_SESSIONS_SECONDS = 5.0
# What only one cgroup version has is tested on machines with that one; hack/vm boots the other.
collect_ignore_glob = [f"test_*_v{3 - cgroups.manager().version}.py"]
UNCHECKED = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test in this directory, so that `-m` selects by what a test needs."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.integration)


def pytest_report_header() -> list[str]:
    """Name what this machine cannot run: nothing is left out in silence."""
    left_out = sorted(path.name for pattern in collect_ignore_glob for path in HERE.glob(pattern))
    version = cgroups.manager().version
    return [f"cgroup v{version}: not collected, for `hack/vm test`: {', '.join(left_out)}"]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if config.stash.get(UNCHECKED, False):
        terminalreporter.section("LEAKS NOT CHECKED", red=True)
        terminalreporter.line(
            "Another session of integration tests runs on this machine: what it made cannot be"
            " told from what this one left."
        )


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(pytestconfig: pytest.Config) -> Iterator[None]:
    """Fail the session when anything of it is left on the machine after its last test."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.fail("integration tests run as root on Linux: they make namespaces, mounts, cgroups")
    os.environ[leaks.SESSION_VARIABLE] = leaks.SESSION
    with sessions_lock() as lock:
        before = leaks.snapshot()
        yield
        if not alone(lock):
            pytestconfig.stash[UNCHECKED] = True
            return
        leaks.assert_nothing_left(before)
        assert leaks.private_directories() == []


@contextlib.contextmanager
def sessions_lock() -> Iterator[int]:
    """Hold the lock that sessions share while they run."""
    descriptor = os.open(SESSIONS_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield descriptor
    finally:
        os.close(descriptor)


def alone(lock: int) -> bool:
    """Wait for other sessions to end; whether they all have."""
    deadline = time.monotonic() + OTHER_SESSIONS_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory, nothing_is_left: None) -> Iterator[Registry]:
    """Debian's docker-registry on a free port, with storage of its own."""
    running = Registry(tmp_path_factory.mktemp("registry"))
    yield running
    running.stop()


@pytest.fixture
def daemon(registry: Registry) -> Iterator[Daemon]:
    """A daemon of this test alone, which pulls `registry.test/…` from the registry."""
    with running_daemon(registry) as running:
        yield running


@pytest.fixture(scope="module")
def module_daemon(registry: Registry) -> Iterator[Daemon]:
    """As `daemon`, for all tests of a module that leave it running and without pods."""
    with running_daemon(registry) as running:
        yield running


@pytest.fixture(scope="module")
def pods(module_daemon: Daemon, registry: Registry) -> Pods:
    """Pods of the module's daemon, which has the tests' image."""
    made = Pods(module_daemon)
    assert made.pull(registry) == IMAGE
    return made


@pytest.fixture
def pod(pods: Pods) -> Iterator[str]:
    """The id of a pod of this test alone."""
    made = pods.run_pod()
    yield made
    pods.remove_pod(made)


@pytest.fixture(params=["spdy", "websocket"])
def opener(request: pytest.FixtureRequest) -> stream_commands.Opener:
    """What runs a command over a stream: each test is run over both protocols."""
    return spdy_command if request.param == "spdy" else websocket_command


@pytest.fixture
def make_daemon(registry: Registry) -> Iterator[Callable[[], Daemon]]:
    """A maker of daemons that are not started yet, for tests that prepare or start them wrong."""
    with contextlib.ExitStack() as stack:

        def make() -> Daemon:
            made = Daemon()
            stack.callback(made.close)
            made.use_registry("registry.test", registry.address)
            return made

        yield make


@contextlib.contextmanager
def running_daemon(registry: Registry) -> Iterator[Daemon]:
    running = Daemon()
    with contextlib.ExitStack() as stack:
        stack.callback(running.close)
        running.use_registry("registry.test", registry.address)
        running.start()
        yield running


@pytest_asyncio.fixture
async def rt(tmp_path: Path) -> AsyncIterator[harness.Runtime]:
    """A spawner of this test alone, with bundles, logs and cgroups for its containers."""
    async with harness.runtime(tmp_path) as runtime:
        yield runtime


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[Images]:
    """An ImageService of this test alone."""
    async with running_images(tmp_path) as running:
        yield running


@pytest_asyncio.fixture
async def open_registry() -> AsyncIterator[Opener]:
    """A maker of odd registries that end with the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(context: ssl.SSLContext | None = None) -> OddRegistry:
            return await stack.enter_async_context(odd_registry(context))

        yield start


@pytest_asyncio.fixture
async def odd(open_registry: Opener) -> OddRegistry:
    """An odd registry of this test alone."""
    return await open_registry()
