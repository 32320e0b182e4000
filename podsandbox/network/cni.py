"""The CNI provider: networks that the plugins of the host's configuration make.

An attachment is stored before the first plugin runs and until the last DEL has succeeded. So a
crash at any moment leaves nothing unknown, and a plugin that fails to DEL delays no pod's removal:
the DEL is tried again in the background, across restarts, with the configuration and the result of
its ADD, whatever the files say by then.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from api.errors import InternalError, UnavailableError
from podsandbox.network import (
    ATTACHMENT,
    INTERFACE,
    NOT_READY_REASON,
    Alive,
    NetworkResult,
    NetworkStatus,
    NetworkStray,
    PodNetworkRequest,
    State,
)
from podsandbox.network.cni_config import ConfigDirectories
from podsandbox.network.cni_deletion import Deletion
from podsandbox.network.cni_plugins import PluginObserver, Plugins, ProgramRunner
from podsandbox.network.cni_protocol import (
    Attachment,
    CNIPluginError,
    capabilities,
    cni_args,
    pod_ips,
)
from podsandbox.network.pod_cidrs import PodCIDRs
from runtimeshim.client import SpawnerError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cni_attachments (
    sandbox_id TEXT PRIMARY KEY,
    attachment TEXT NOT NULL,
    netns TEXT NOT NULL,
    detaching INTEGER NOT NULL
)
"""

# How many DELs of what a crash or a reboot has left run at once, beside the pods that start now.
_PARALLEL_DELETIONS = 4

_log = logging.getLogger(__name__)


class CNINetwork:
    """A Network by the CNI plugins of the host."""

    def __init__(
        self,
        conf_dirs: Sequence[Path],
        bin_dirs: Sequence[Path],
        runner: ProgramRunner,
        database: sqlite3.Connection,
        pod_cidrs: PodCIDRs,
        *,
        timeout: float,
        observer: PluginObserver | None = None,
    ) -> None:
        """`timeout`, in seconds, is that of each plugin's run, and `observer` is told of it."""
        self._runner = runner
        self._observer = observer
        self.configure(conf_dirs, bin_dirs, timeout)
        self._database = database
        self._cidrs = pod_cidrs
        self._deletions: dict[str, Deletion] = {}
        self._gate = asyncio.Semaphore(_PARALLEL_DELETIONS)
        self._after_start: asyncio.Task[None] | None = None
        self.problems: dict[str, str] = {}
        """Sandbox id -> what CHECK has found wrong since this daemon started."""
        database.execute(_SCHEMA)

    def configure(
        self, conf_dirs: Sequence[Path], bin_dirs: Sequence[Path], timeout: float
    ) -> None:
        """Use other directories and another time-out from now on; a plugin that runs, runs on."""
        self._configs = ConfigDirectories(conf_dirs)
        self._plugins = Plugins(bin_dirs, self._runner, timeout, self._observer)

    def configured(self) -> bool:
        """Say whether a configuration directory holds a configuration, usable or not."""
        return self._configs.exists()

    async def status(self) -> NetworkStatus:
        """Ready when there is a usable configuration and its plugins are there and say so."""
        config, reasons = self._configs.load()
        if config is None:
            return NetworkStatus(False, NOT_READY_REASON, self._no_config(reasons))
        try:
            for plugin in config.plugins:
                self._plugins.program(plugin)
            if config.since("1.1.0"):
                await self._plugins.status(config)
        except (CNIPluginError, SpawnerError) as err:
            return NetworkStatus(False, NOT_READY_REASON, f"CNI network {config.name}: {err}")
        return NetworkStatus(True)

    async def attach(self, pod: PodNetworkRequest) -> NetworkResult:
        """ADD every plugin in order; after a failure DEL them and raise InternalError."""
        config, reasons = self._configs.load()
        if config is None:
            raise UnavailableError(self._no_config(reasons))
        offered = capabilities(pod, self._cidrs.get())
        attachment = Attachment(pod.sandbox_id, config, offered, cni_args(pod))
        self._store(attachment, pod.netns)
        try:
            result = await self._plugins.add(attachment, str(pod.netns))
            ips = pod_ips(result)
        except BaseException as err:
            await self._delete(attachment, pod.netns)
            if isinstance(err, CNIPluginError | SpawnerError):
                raise InternalError(f"CNI network {config.name}: {err}") from err
            raise
        attachment = replace(attachment, result=result)
        self._store(attachment, pod.netns)
        return NetworkResult(tuple(ips), (INTERFACE,), attachment.as_json())

    async def detach(self, pod: PodNetworkRequest, state: State) -> None:
        """DEL every plugin, last first; a failure is logged and tried again in the background."""
        await self._delete_stored(pod.sandbox_id)

    async def discard(self, sandbox_id: str) -> None:
        """As detach; but what is being tried again in the background is left to that."""
        deletion = self._deletions.get(sandbox_id)
        if deletion is None or not deletion.has_failed:
            await self._delete_stored(sandbox_id)

    async def _delete_stored(self, sandbox_id: str) -> None:
        row = self._database.execute(
            "SELECT attachment, netns FROM cni_attachments WHERE sandbox_id = ?", (sandbox_id,)
        ).fetchone()
        if row is not None:
            await self._delete(Attachment.from_json(json.loads(row[0])), Path(row[1]))

    async def reconcile(self, live: Collection[str]) -> None:
        """Begin to DEL what belongs to no sandbox of `live`: it goes on in the background.

        Then the plugins' GC runs, and CHECK for the pods that live.
        """
        begun, kept = [], []
        rows = self._database.execute("SELECT * FROM cni_attachments").fetchall()
        for sandbox_id, stored, netns, detaching in rows:
            attachment = Attachment.from_json(json.loads(stored))
            if detaching or sandbox_id not in live:
                begun.append(self._begin(attachment, Path(netns), self._gate))
            else:
                kept.append((attachment, Path(netns)))
        self._after_start = asyncio.create_task(self._look_after(begun, kept))

    async def strays(self, alive: Alive) -> list[NetworkStray]:
        """Find the attachments of pods that are gone, of which no DEL is under way."""
        rows = self._database.execute(
            "SELECT sandbox_id FROM cni_attachments WHERE detaching = 0"
        ).fetchall()
        known = alive()
        return [NetworkStray(ATTACHMENT, key, "", key) for (key,) in rows if key not in known]

    async def remove_stray(self, kind: str, name: str) -> None:
        """Begin its DELs; those that fail go on in the background."""
        await self._delete_stored(name)

    async def close(self) -> None:
        """Give up waiting for retries; the next start goes on with them."""
        tasks = [deletion.task for deletion in self._deletions.values()]
        if self._after_start is not None:
            tasks.append(self._after_start)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _no_config(self, reasons: Sequence[str]) -> str:
        skipped = f" ({'; '.join(reasons)})" if reasons else ""
        return f"no usable CNI configuration in {self._configs}{skipped}"

    def _store(self, attachment: Attachment, netns: Path) -> None:
        with self._database:
            self._database.execute(
                "INSERT OR REPLACE INTO cni_attachments VALUES (?, ?, ?, 0)",
                (attachment.sandbox_id, json.dumps(attachment.as_json()), str(netns)),
            )

    async def _delete(self, attachment: Attachment, netns: Path) -> None:
        """Try DEL once; what fails is tried again in the background."""
        await self._begin(attachment, netns).attempt()

    def _begin(
        self, attachment: Attachment, netns: Path, gate: asyncio.Semaphore | None = None
    ) -> Deletion:
        """Return the deletion of an attachment, which goes on until it has succeeded."""
        sandbox_id = attachment.sandbox_id
        self.problems.pop(sandbox_id, None)
        if sandbox_id in self._deletions:
            return self._deletions[sandbox_id]
        with self._database:
            self._database.execute(
                "UPDATE cni_attachments SET detaching = 1 WHERE sandbox_id = ?", (sandbox_id,)
            )

        async def delete() -> None:
            await self._plugins.delete(attachment, _if_there(netns))
            with self._database:
                self._database.execute(
                    "DELETE FROM cni_attachments WHERE sandbox_id = ?", (sandbox_id,)
                )

        deletion = Deletion(sandbox_id, delete, gate)
        self._deletions[sandbox_id] = deletion
        deletion.task.add_done_callback(lambda _: self._deletions.pop(sandbox_id, None))
        return deletion

    async def _look_after(
        self, begun: Sequence[Deletion], kept: Sequence[tuple[Attachment, Path]]
    ) -> None:
        """What a start does when pods can be served again: GC, then CHECK."""
        await asyncio.gather(*(deletion.attempt() for deletion in begun))
        await self._collect_garbage()
        for attachment, netns in kept:
            before = time.monotonic()
            await self._check(attachment, netns)
            # No more than half of one processor's time: nobody waits for this.
            await asyncio.sleep(time.monotonic() - before)

    async def _collect_garbage(self) -> None:
        config, _ = self._configs.load()
        if config is None or config.disable_gc or not config.since("1.1.0"):
            return
        try:
            await self._plugins.collect_garbage(config, lambda: self._attached(config.name))
        except (CNIPluginError, SpawnerError) as err:
            _log.warning("CNI network %s: %s", config.name, err)

    def _attached(self, network: str) -> list[str]:
        """Return the sandboxes that are attached to a network."""
        rows = self._database.execute("SELECT attachment FROM cni_attachments WHERE detaching = 0")
        stored = [Attachment.from_json(json.loads(row[0])) for row in rows]
        return [one.sandbox_id for one in stored if one.config.name == network]

    async def _check(self, attachment: Attachment, netns: Path) -> None:
        config, sandbox_id = attachment.config, attachment.sandbox_id
        if config.disable_check or not config.since("0.4.0") or attachment.result is None:
            return
        try:
            await self._plugins.check(attachment, str(netns))
        except (CNIPluginError, SpawnerError) as err:
            if sandbox_id not in self._deletions and netns.exists():  # not stopped meanwhile
                self.problems[sandbox_id] = str(err)
                _log.warning("sandbox %s: its network is not as it was: %s", sandbox_id, err)


def _if_there(netns: Path) -> str:
    """Return the path of a namespace, or "", by which plugins know that it has gone."""
    return str(netns) if netns.exists() else ""
