"""The CNI client: runs the plugins of the configuration, through the spawner.

An attachment is stored before the first plugin runs and until the last DEL has succeeded. So a
crash at any moment leaves nothing unknown, and a plugin that fails to DEL delays no pod's removal:
the DEL is tried again in the background, across restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from api.errors import InternalError, UnavailableError
from podsandbox.network import (
    INTERFACE,
    NOT_READY_REASON,
    NetworkResult,
    NetworkStatus,
    PodNetworkRequest,
    State,
)
from podsandbox.network.cni_config import ConfigDirectory, Plugin, from_json
from podsandbox.network.cni_protocol import (
    Attachment,
    CNIPluginError,
    Result,
    capabilities,
    cni_args,
    environment,
    parse_error,
    parse_result,
    plugin_input,
    pod_ips,
    result_for_del,
    stderr_of,
)
from runtimeshim.client import ProgramResult, ProgramTimeoutError, SpawnerError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cni_attachments (
    sandbox_id TEXT PRIMARY KEY,
    attachment TEXT NOT NULL,
    netns TEXT NOT NULL,
    detaching INTEGER NOT NULL
)
"""

# A failed DEL is tried again after this long, then after twice as long, up to the limit.
_FIRST_RETRY_SECONDS = 1.0
_LAST_RETRY_SECONDS = 300.0

_log = logging.getLogger(__name__)


class ProgramRunner(Protocol):
    """The part of runtimeshim.client.Spawner that is used here."""

    async def run_program(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: bytes = b"",
        timeout: float,
    ) -> ProgramResult:
        """Run a helper program to its end."""


class CNINetwork:
    """A Network by the CNI plugins of the host."""

    def __init__(
        self,
        conf_dir: Path,
        bin_dirs: Sequence[Path],
        runner: ProgramRunner,
        database: sqlite3.Connection,
        *,
        timeout: float,
    ) -> None:
        """`timeout`, in seconds, is that of each plugin's run."""
        self._configs = ConfigDirectory(conf_dir)
        self._bin_dirs = [str(directory) for directory in bin_dirs]
        self._runner = runner
        self._database = database
        self._timeout = timeout
        self._retries: dict[str, asyncio.Task[None]] = {}
        database.execute(_SCHEMA)

    def configured(self) -> bool:
        """Say whether the configuration directory holds a configuration, usable or not."""
        return self._configs.exists()

    def status(self) -> NetworkStatus:
        """Ready when there is a usable configuration and its plugins are installed."""
        config, reasons = self._configs.load()
        if config is None:
            return NetworkStatus(False, NOT_READY_REASON, self._no_config(reasons))
        for plugin in config.plugins:
            try:
                self._program(plugin)
            except CNIPluginError as err:
                return NetworkStatus(False, NOT_READY_REASON, f"CNI network {config.name}: {err}")
        return NetworkStatus(True)

    async def attach(self, pod: PodNetworkRequest) -> NetworkResult:
        """ADD every plugin in order; after a failure DEL them and raise InternalError."""
        config, reasons = self._configs.load()
        if config is None:
            raise UnavailableError(self._no_config(reasons))
        attachment = Attachment(pod.sandbox_id, config, capabilities(pod), cni_args(pod))
        self._store(attachment, pod.netns)
        try:
            result = await self._add(attachment, pod.netns)
            ips = pod_ips(result)
        except BaseException as err:
            await self._detach(attachment, pod.netns)
            if isinstance(err, CNIPluginError):
                raise InternalError(f"CNI network {config.name}: {err}") from err
            raise
        attachment = replace(attachment, result=result)
        self._store(attachment, pod.netns)
        return NetworkResult(tuple(ips), (INTERFACE,), attachment.as_json())

    async def detach(self, pod: PodNetworkRequest, state: State) -> None:
        """DEL every plugin, last first; a failure is logged and tried again in the background."""
        with contextlib.suppress(KeyError):
            self._retries.pop(pod.sandbox_id).cancel()
        if self._is_stored(pod.sandbox_id):
            await self._detach(_attachment(state), pod.netns)

    async def reconcile(self, live: Collection[str]) -> None:
        """DEL what belongs to no sandbox of `live`: what a crash or a failed DEL has left."""
        rows = self._database.execute("SELECT * FROM cni_attachments").fetchall()
        for sandbox_id, attachment, netns, detaching in rows:
            if (detaching or sandbox_id not in live) and sandbox_id not in self._retries:
                await self._detach(_attachment(json.loads(attachment)), Path(netns))

    async def close(self) -> None:
        """Give up waiting for retries; the next start goes on with them."""
        tasks = list(self._retries.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _no_config(self, reasons: Sequence[str]) -> str:
        skipped = f" ({'; '.join(reasons)})" if reasons else ""
        return f"no usable CNI configuration in {self._configs.path}{skipped}"

    def _store(self, attachment: Attachment, netns: Path) -> None:
        with self._database:
            self._database.execute(
                "INSERT OR REPLACE INTO cni_attachments VALUES (?, ?, ?, 0)",
                (attachment.sandbox_id, json.dumps(attachment.as_json()), str(netns)),
            )

    def _is_stored(self, sandbox_id: str) -> bool:
        row = self._database.execute(
            "SELECT 1 FROM cni_attachments WHERE sandbox_id = ?", (sandbox_id,)
        ).fetchone()
        return row is not None

    async def _add(self, attachment: Attachment, netns: Path) -> Result:
        result: Result | None = None
        for plugin in attachment.config.plugins:
            stdin = plugin_input(attachment, plugin, result)
            stdout = await self._run("ADD", attachment, plugin, stdin, str(netns))
            with _naming(plugin):
                result = parse_result(stdout, attachment.config.version)
        if result is None:
            raise CNIPluginError("no plugins")
        return result

    async def _detach(self, attachment: Attachment, netns: Path) -> None:
        with self._database:
            self._database.execute(
                "UPDATE cni_attachments SET detaching = 1 WHERE sandbox_id = ?",
                (attachment.sandbox_id,),
            )
        try:
            await self._delete(attachment, netns)
        except (CNIPluginError, SpawnerError) as err:
            _log.warning("sandbox %s: CNI DEL failed: %s", attachment.sandbox_id, err)
            self._retry(attachment, netns)

    async def _delete(self, attachment: Attachment, netns: Path) -> None:
        """DEL all plugins, also those after one that fails; then raise the first failure."""
        path = str(netns) if netns.exists() else ""
        failure: CNIPluginError | None = None
        for plugin in reversed(attachment.config.plugins):
            stdin = plugin_input(attachment, plugin, result_for_del(attachment))
            try:
                await self._run("DEL", attachment, plugin, stdin, path)
            except CNIPluginError as err:
                failure = failure or err
        if failure is not None:
            raise failure
        with self._database:
            self._database.execute(
                "DELETE FROM cni_attachments WHERE sandbox_id = ?", (attachment.sandbox_id,)
            )

    def _retry(self, attachment: Attachment, netns: Path) -> None:
        if attachment.sandbox_id in self._retries:
            return
        task = asyncio.get_running_loop().create_task(self._delete_later(attachment, netns))
        self._retries[attachment.sandbox_id] = task
        task.add_done_callback(self._forgetter(attachment.sandbox_id))

    def _forgetter(self, sandbox_id: str) -> Callable[[asyncio.Task[None]], None]:
        def forget(task: asyncio.Task[None]) -> None:
            if self._retries.get(sandbox_id) is task:
                del self._retries[sandbox_id]

        return forget

    async def _delete_later(self, attachment: Attachment, netns: Path) -> None:
        delay = _FIRST_RETRY_SECONDS
        while True:
            await asyncio.sleep(delay)
            try:
                await self._delete(attachment, netns)
            except (CNIPluginError, SpawnerError) as err:
                _log.info("sandbox %s: CNI DEL failed again: %s", attachment.sandbox_id, err)
                delay = min(2 * delay, _LAST_RETRY_SECONDS)
            else:
                return

    async def _run(
        self, command: str, attachment: Attachment, plugin: Plugin, stdin: bytes, netns: str
    ) -> bytes:
        """Run one plugin and return its stdout. Raises CNIPluginError, which names it."""
        with _naming(plugin, command):
            program = self._program(plugin)
            env = environment(command, attachment, netns, self._bin_dirs)
            try:
                result = await self._runner.run_program(
                    [program], env=env, stdin=stdin, timeout=self._timeout
                )
            except ProgramTimeoutError as err:
                words = f"killed after {self._timeout:g} s{stderr_of(err.stderr)}"
                raise CNIPluginError(words) from err
            if result.exit_code != 0:
                raise parse_error(result.exit_code, result.stdout, result.stderr)
            return result.stdout

    def _program(self, plugin: Plugin) -> str:
        for directory in self._bin_dirs:
            path = f"{directory}/{plugin['type']}"
            if os.access(path, os.X_OK):
                return path
        raise CNIPluginError(f"plugin {plugin['type']} is not in {', '.join(self._bin_dirs)}")


@contextlib.contextmanager
def _naming(plugin: Plugin, command: str = "ADD") -> Any:
    """Put the plugin's name before what it did wrong."""
    try:
        yield
    except CNIPluginError as err:
        raise CNIPluginError(f"plugin {plugin['type']} {command}: {err}") from err


def _attachment(state: State) -> Attachment:
    return Attachment(
        state["sandbox_id"],
        from_json(state["config"]),
        state["capabilities"],
        state["args"],
        state["result"],
    )
