"""Runs CNI plugins: one method for each operation of the spec (CNI spec 1.1, section 2).

A plugin is a program that is executed by the spawner. It is killed, with what it has started, when
it takes longer than its timeout.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from api.stages import stage, waiting_for
from podsandbox.network.cni_config import CNIConfig, Plugin
from podsandbox.network.cni_protocol import (
    Attachment,
    CNIPluginError,
    Result,
    environment,
    gc_input,
    network_environment,
    network_input,
    parse_error,
    parse_result,
    plugin_input,
    result_for_del,
    stderr_of,
)
from podsandbox.network.shared_lock import SharedLock
from runtimeshim.client import ProgramResult, ProgramTimeoutError
from runtimeshim.linux import process_state

# STATUS looks and does nothing, and the kubelet waits for the answer.
_STATUS_SECONDS = 10.0


class PluginObserver(Protocol):
    """Who is told of every run of a plugin."""

    def ran(self, plugin: str, command: str, seconds: float, succeeded: bool) -> None:
        """Note one run: the plugin's type, such as "bridge", and the operation, such as "ADD"."""


class ProgramRunner(Protocol):
    """The part of runtimeshim.client.Spawner that is used here."""

    async def run_program(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: bytes = b"",
        timeout: float,
        watch: Callable[[int, bytearray], None] | None = None,
    ) -> ProgramResult:
        """Run a helper program to its end; `watch` gets its pid and its stderr as it grows."""


class Plugins:
    """The plugin programs of the host. All methods raise CNIPluginError, and SpawnerError."""

    def __init__(
        self,
        bin_dirs: Sequence[Path],
        runner: ProgramRunner,
        timeout: float,
        observer: PluginObserver | None = None,
    ) -> None:
        """`timeout`, in seconds, is that of each plugin's run."""
        self._observer = observer
        self._bin_dirs = [str(directory) for directory in bin_dirs]
        self._runner = runner
        self._timeout = timeout
        # GC must run alone, without an ADD or DEL beside it (spec 1.1, section 3).
        self._lock = SharedLock("GC of the CNI plugins")

    async def add(self, attachment: Attachment, netns: str) -> Result:
        """Run ADD of every plugin in order, each with the result of the one before."""
        async with self._lock.shared():
            return await self._add(attachment, netns)

    async def _add(self, attachment: Attachment, netns: str) -> Result:
        result: Result | None = None
        for plugin in attachment.config.plugins:
            stdin = plugin_input(attachment, plugin, result)
            env = environment("ADD", attachment, netns, self._bin_dirs)
            stdout = await self._run(plugin, env, stdin)
            with _naming(plugin, "ADD"):
                result = parse_result(stdout, attachment.config.version)
        if result is None:
            raise CNIPluginError("no plugins")
        return result

    async def delete(self, attachment: Attachment, netns: str) -> None:
        """Run DEL of every plugin, last first, also after one that fails; `netns` may be ""."""
        env = environment("DEL", attachment, netns, self._bin_dirs)
        result = result_for_del(attachment)
        runs = [
            (plugin, plugin_input(attachment, plugin, result))
            for plugin in reversed(attachment.config.plugins)
        ]
        async with self._lock.shared():
            await self._run_all(env, runs)

    async def check(self, attachment: Attachment, netns: str) -> None:
        """Run CHECK of every plugin: is the pod's network as ADD has left it?"""
        env = environment("CHECK", attachment, netns, self._bin_dirs)
        for plugin in attachment.config.plugins:
            await self._run(plugin, env, plugin_input(attachment, plugin, attachment.result))

    async def status(self, config: CNIConfig) -> None:
        """Run STATUS of every plugin: could a pod be attached now?"""
        env = network_environment("STATUS", self._bin_dirs)
        for plugin in config.plugins:
            timeout = min(self._timeout, _STATUS_SECONDS)
            await self._run(plugin, env, network_input(config, plugin), timeout)

    async def collect_garbage(self, config: CNIConfig, valid: Callable[[], Sequence[str]]) -> None:
        """Run GC of every plugin, also after one that fails, while no ADD or DEL runs.

        `valid` returns the ids of the sandboxes that are attached at that moment.
        """
        env = network_environment("GC", self._bin_dirs)
        async with self._lock.alone():
            ids = valid()
            runs = [(plugin, gc_input(config, plugin, ids)) for plugin in config.plugins]
            await self._run_all(env, runs)

    async def _run_all(self, env: Mapping[str, str], runs: Sequence[tuple[Plugin, bytes]]) -> None:
        """Run plugins one after another, and raise the first failure at the end."""
        failure: CNIPluginError | None = None
        for plugin, stdin in runs:
            try:
                await self._run(plugin, env, stdin)
            except CNIPluginError as err:
                failure = failure or err
        if failure is not None:
            raise failure

    def program(self, plugin: Plugin) -> str:
        """Return the path of a plugin. Raises CNIPluginError."""
        return find_program(plugin["type"], self._bin_dirs)

    async def _run(
        self, plugin: Plugin, env: Mapping[str, str], stdin: bytes, timeout: float | None = None
    ) -> bytes:
        """Run one plugin and return its stdout."""
        seconds = self._timeout if timeout is None else timeout
        name = f"{plugin['type']} {env['CNI_COMMAND']}"
        with (
            stage("plugin", name),
            self._observed(plugin["type"], env["CNI_COMMAND"]),
            _naming(plugin, env["CNI_COMMAND"]),
        ):
            try:
                result = await self._runner.run_program(
                    [self.program(plugin)],
                    env=env,
                    stdin=stdin,
                    timeout=seconds,
                    watch=lambda pid, stderr: waiting_for(lambda: _doing(name, pid, stderr)),
                )
            except ProgramTimeoutError as err:
                words = f"killed after {seconds:g} s{stderr_of(err.stderr)}"
                raise CNIPluginError(words) from err
            if result.exit_code != 0:
                raise parse_error(result.exit_code, result.stdout, result.stderr)
            return result.stdout

    @contextlib.contextmanager
    def _observed(self, plugin: str, command: str) -> Iterator[None]:
        """Tell the observer how long a run took, and whether it came to a good end."""
        if self._observer is None:
            yield
            return
        began, succeeded = time.monotonic(), False
        try:
            yield
            succeeded = True
        finally:
            self._observer.ran(plugin, command, time.monotonic() - began, succeeded)


def find_program(name: str, directories: Sequence[str]) -> str:
    """Return the path of a plugin, from the first directory that has it; or CNIPluginError."""
    found = [path for directory in directories if os.path.isfile(path := f"{directory}/{name}")]
    for path in found:
        if os.access(path, os.X_OK):
            return path
    if found:
        why = "its mode has no x, or it is on a mount with noexec"
        raise CNIPluginError(f"plugin {name} cannot be executed from {found[0]}: {why}")
    raise CNIPluginError(f"plugin {name} is not in {', '.join(directories)}")


def _doing(name: str, pid: int, stderr: bytearray) -> str:
    """Say what a plugin that runs is doing, and what it has said so far."""
    states = process_state.look_at([pid, *process_state.descendants(pid)])
    processes = "; ".join(map(str, states)) or f"process {pid} has ended"
    return f"CNI plugin {name} has not ended: {processes}{stderr_of(bytes(stderr))}"


@contextlib.contextmanager
def _naming(plugin: Plugin, command: str) -> Iterator[None]:
    """Put the plugin's name before what it did wrong."""
    try:
        yield
    except CNIPluginError as err:
        raise CNIPluginError(f"plugin {plugin['type']} {command}: {err}") from err
