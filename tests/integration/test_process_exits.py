"""What the kernel tells of the end of a process that is nobody's child here."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from runtimeshim.linux.process_exits import ExitWatch, listen
from tests.integration.daemon import PATIENCE

# Prints its pid, reads a number, and exits with it. The main thread of the other one has ended.
SHELL = "echo $$; read code; exit $code"
THREADS = (
    "import ctypes, os, sys, threading\n"
    "threading.Thread(target=lambda: os._exit(int(sys.stdin.readline()))).start()\n"
    "print(os.getpid(), flush=True)\n"
    "exit_thread = 60 if os.uname().machine == 'x86_64' else 93\n"
    "ctypes.CDLL(None).syscall(exit_thread, 0)\n"
)
# More threads than the kernel keeps exits of, before the process's own; it reads a number first.
CHURN = (
    "import os, sys, threading\n"
    "print(os.getpid(), flush=True)\n"
    "code = int(sys.stdin.readline())\n"
    "for _ in range(20000):\n"
    "    thread = threading.Thread(target=int)\n"
    "    thread.start()\n"
    "    thread.join()\n"
    "os._exit(code)\n"
)


class Stranger:
    """A process whose parent, which reaps it, is another one than this."""

    def __init__(self, *command: str) -> None:
        # A shell gives what runs in its background no stdin of its own.
        script = 'exec 3<&0; "$@" <&3 & wait $!'
        self._parent = subprocess.Popen(
            ["sh", "-c", script, "sh", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._stdin, self._stdout = self._parent.stdin, self._parent.stdout
        self.pid = int(self._stdout.readline())
        self._pidfd = os.pidfd_open(self.pid)

    def exit(self, code: int) -> None:
        self.tell(code)
        self.await_end()

    def tell(self, code: int) -> None:
        self._stdin.write(f"{code}\n".encode())
        self._stdin.flush()

    def await_end(self) -> None:
        assert self.has_ended(20.0 * PATIENCE)

    def has_ended(self, seconds: float) -> bool:
        return bool(select.select([self._pidfd], [], [], seconds)[0])

    def close(self) -> None:
        os.close(self._pidfd)
        self._stdin.close()
        self._stdout.close()
        self._parent.wait()


@pytest.fixture(params=[("sh", "-c", SHELL), ("python3", "-c", THREADS)], ids=["one", "threads"])
def stranger(request: pytest.FixtureRequest) -> Iterator[Stranger]:
    made = Stranger(*request.param)
    yield made
    made.close()


@pytest.fixture
def watch(stranger: Stranger) -> Iterator[ExitWatch]:
    made = listen(stranger.pid)
    yield made
    made.close()


def test_an_exit_code_is_told_and_no_other_process_s(stranger: Stranger, watch: ExitWatch) -> None:
    subprocess.run(["false"], check=False)
    assert watch.status() in (None, 0)  # the main thread's, where that has ended
    stranger.exit(7)
    for _ in range(2):
        status = watch.status()
        assert status is not None
        assert os.waitstatus_to_exitcode(status) == 7


def test_a_signal_is_told(stranger: Stranger, watch: ExitWatch) -> None:
    os.kill(stranger.pid, signal.SIGKILL)
    stranger.await_end()
    status = watch.status()
    assert status is not None
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_what_nobody_has_read_waits_for_who_has_a_duplicate(stranger: Stranger) -> None:
    first = listen(stranger.pid)
    second = ExitWatch(socket.socket(fileno=os.dup(first.fileno())))
    first.close()
    stranger.exit(7)
    status = second.status()
    assert status is not None
    assert os.waitstatus_to_exitcode(status) == 7
    second.close()


@pytest.fixture
def churn() -> Iterator[Stranger]:
    made = Stranger("python3", "-c", CHURN)
    yield made
    made.close()


def test_more_threads_than_are_remembered_hide_no_exit_from_a_reader(churn: Stranger) -> None:
    watch = listen(churn.pid)
    churn.tell(7)
    while not churn.has_ended(0.0):
        select.select([watch], [], [], 1.0)
        watch.status()
    status = watch.status()
    assert status is not None
    assert os.waitstatus_to_exitcode(status) == 7
    watch.close()


def test_of_what_was_lost_no_thread_s_status_is_told_for_the_process_s(churn: Stranger) -> None:
    watch = listen(churn.pid)
    churn.exit(7)
    assert watch.status() is None
    watch.close()
