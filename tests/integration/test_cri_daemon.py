"""The daemon as a process: its one line, its exit codes, its locks, its configuration."""

from __future__ import annotations

import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

from api.cri import api_pb2 as cri
from tests.integration.daemon import PATIENCE, RPC_SECONDS, Daemon

SECONDS = 60 * PATIENCE


def serve(daemon: Daemon, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a second daemon's command line to its end."""
    return subprocess.run(
        [*daemon.command(), *flags], capture_output=True, text=True, timeout=SECONDS, check=False
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode != 0
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_it_prints_one_line_when_it_serves(make_daemon: Callable[[], Daemon]) -> None:
    daemon = make_daemon()
    assert re.fullmatch(
        rf"criserver \d+\.\d+\.\d+ serving CRI v1 on unix://{daemon.socket}", daemon.start()
    )
    daemon.runtime.Version(cri.VersionRequest(), timeout=RPC_SECONDS)
    daemon.stop()


def test_a_second_daemon_on_the_same_directories_is_refused(daemon: Daemon) -> None:
    said = one_line(serve(daemon))
    assert said.startswith(f"criserver: another criserver (pid {daemon.pid}) works in ")
    daemon.runtime.Version(cri.VersionRequest(), timeout=RPC_SECONDS)  # undisturbed


def test_a_second_daemon_on_the_same_root_or_run_directory_alone(
    daemon: Daemon, make_daemon: Callable[[], Daemon]
) -> None:
    other = make_daemon()
    assert f"works in {daemon.root}" in one_line(serve(other, "--root", str(daemon.root)))
    assert f"works in {daemon.run_dir}" in one_line(serve(other, "--run-dir", str(daemon.run_dir)))


def test_an_unknown_configuration_key_is_refused(make_daemon: Callable[[], Daemon]) -> None:
    daemon = make_daemon()
    with daemon.config.open("a") as config:
        config.write('brigde = "typo"\n')
    said = one_line(serve(daemon))
    assert said.startswith(f"criserver: {daemon.config}:4: unknown key 'network.brigde'")


def test_a_wrong_flag_is_refused(make_daemon: Callable[[], Daemon]) -> None:
    daemon = make_daemon()
    assert "--log-level" in one_line(serve(daemon, "--log-level", "loud"))


def test_a_broken_database_is_refused(make_daemon: Callable[[], Daemon]) -> None:
    daemon = make_daemon()
    daemon.root.mkdir()
    (daemon.root / "criserver.db").write_bytes(b"something else entirely, and long\n" * 100)
    assert "criserver.db cannot be used" in one_line(serve(daemon))


def test_sockets_and_directories_are_private(daemon: Daemon) -> None:
    for path, mode in (
        (daemon.socket, 0o600),
        (daemon.run_dir / "spawner.sock", 0o600),
        (daemon.run_dir / "containers", 0o700),
        (daemon.root, 0o700),
        (daemon.root / "criserver.db", 0o600),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path


def test_the_daemon_never_forks_and_the_spawner_holds_no_secret(daemon: Daemon) -> None:
    environment = Path(f"/proc/{daemon.spawner_pid()}/environ").read_bytes().split(b"\0")
    assert {entry.split(b"=")[0] for entry in environment if entry} <= {b"LANG", b"PATH"}
