"""SIGHUP: read the configuration again, and put into effect what a running daemon can change.

All or nothing: a file with a mistake changes nothing. What is declared as `reloaded` in the schema
(criserver.config) takes effect for what begins from then on; of every other setting that differs a
line says that it waits for a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from criserver import config_schema, logs, oci_features
from criserver.config import Config, ConfigError
from criserver.config_schema import toml_value
from criserver.runtime import Runtime
from criserver.service import Service

log = logging.getLogger(__name__)

Change = tuple[str, Any, Any]  # dotted key, value in effect, new value; None: it is not there


async def reload_forever(
    runtime: Runtime, read: Callable[[], Config], hangup: asyncio.Event, service: Service
) -> None:
    """Reload whenever `hangup` is set, and tell systemd how it went."""
    while True:
        await hangup.wait()
        hangup.clear()
        service.reloading()
        try:
            outcome = await reload(runtime, read)
        except Exception as err:  # systemd waits for the end, and the next one may work
            log.exception("the reload has failed")
            outcome = f"reload failed: {err}"
        service.reloaded(outcome)


async def reload(runtime: Runtime, read: Callable[[], Config]) -> str:
    """Reload the configuration; returns a line for `systemctl status` that says how it went."""
    try:
        wanted = read()
    except ConfigError as err:
        log.error("the configuration is not reloaded, nothing changes: %s", err)  # noqa: TRY400 - the message is whole
        return f"reload failed, nothing has changed: {err}"
    changes = changed(runtime.config, wanted)
    now = [change for change in changes if config_schema.is_reloaded(Config, change[0])]
    later = [change for change in changes if change not in now]
    if now:
        await _apply(runtime, _merged(runtime.config, now))
    _tell(changes, now, later)
    logs.set_level(runtime.config.log_level)
    waiting = f"; waiting for a restart: {', '.join(key for key, *_ in later)}" if later else ""
    return f"reloaded, {len(now)} settings changed{waiting}"


def _tell(changes: list[Change], now: list[Change], later: list[Change]) -> None:
    """Log what changes, whatever the levels before and after would let through."""
    logs.set_level("info")
    for change in now:
        log.info("reloaded: %s", _line(change))
    for change in later:
        log.warning("not reloaded, it needs a restart of criserver: %s", _line(change))
    if not changes:
        log.info("reloaded: no setting has changed")


def changed(old: Config, new: Config) -> list[Change]:
    """Return the settings that differ, by their keys."""
    before, after = config_schema.flatten(old), config_schema.flatten(new)
    return [
        (key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _merged(old: Config, changes: list[Change]) -> Config:
    """Return the settings in effect with some changed; a key without a value is taken out."""
    values = config_schema.flatten(old) | {key: new for key, _, new in changes}
    given = {key: value for key, value in values.items() if value is not None}
    merged: Config = config_schema.build(Config, given)
    return merged


def _line(change: Change) -> str:
    key, old, new = change
    before, after = ("nothing" if each is None else toml_value(each) for each in (old, new))
    return f"{key}: {before} -> {after}"


async def _apply(runtime: Runtime, config: Config) -> None:
    """Put settings into effect; what is not told here is read from runtime.config when used."""
    binaries = {name: external.path for name, external in config.runtimes.items()}
    read_only = await oci_features.recursive_read_only(runtime.spawner, binaries)
    runtime.network.configure(
        config.network.cni_conf_dirs,
        config.network.cni_bin_dirs,
        config.network.cni_timeout_seconds,
    )
    runtime.images.configure(config.registries.certs_dir, config.images.pinned_images)
    runtime.recursive_read_only = read_only
    runtime.config = config
