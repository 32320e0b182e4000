"""SIGHUP: what changes at once, what waits for a restart, and files with mistakes."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from criserver import config_schema, reload
from criserver.config import Config, ConfigError, NetworkConfig, RuntimeConfig

SETTINGS = list(config_schema.settings(Config))


class FakeSpawner:
    async def run_program(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(exit_code=0, stdout=b'{"mountOptions": ["rro"]}', stderr=b"")


class Recorder:
    """Stands in for the network and the images: keeps what it was configured with."""

    def __init__(self) -> None:
        self.configured: list[tuple[Any, ...]] = []

    def configure(self, *values: Any) -> None:
        self.configured.append(values)


def make_runtime() -> Any:
    return SimpleNamespace(
        config=Config(), spawner=FakeSpawner(), network=Recorder(), images=Recorder(),
        recursive_read_only=frozenset(),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def root_level() -> Iterator[None]:
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


async def test_a_level_takes_effect_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    runtime = make_runtime()
    outcome = await reload.reload(runtime, lambda: Config(log_level="debug"))
    assert logging.getLogger().level == logging.DEBUG
    assert runtime.config.log_level == "debug"
    assert outcome == "reloaded, 1 settings changed"
    assert 'reloaded: log_level: "info" -> "debug"' in caplog.text


async def test_directories_reach_those_who_look_there() -> None:
    runtime = make_runtime()
    network = NetworkConfig(cni_conf_dirs=(Path("/a"),), cni_bin_dirs=(), cni_timeout_seconds=1.0)
    await reload.reload(runtime, lambda: Config(network=network))
    assert runtime.network.configured == [((Path("/a"),), (), 1.0)]
    assert runtime.config.network == network


async def test_handlers_come_and_go() -> None:
    runtime = make_runtime()
    runc = {"runc": RuntimeConfig(path=Path("/bin/sh"))}
    await reload.reload(runtime, lambda: Config(runtimes=runc))
    assert runtime.config.runtimes == runc
    assert runtime.recursive_read_only == {"runc"}
    await reload.reload(runtime, Config)
    assert (runtime.config.runtimes, runtime.recursive_read_only) == ({}, frozenset())


async def test_what_cannot_be_reloaded_stays_and_has_its_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime = make_runtime()
    wanted = Config(root=Path("/elsewhere"), log_level="error")
    outcome = await reload.reload(runtime, lambda: wanted)
    assert runtime.config == Config(log_level="error")
    assert outcome == "reloaded, 1 settings changed; waiting for a restart: root"
    assert (
        "not reloaded, it needs a restart of criserver: "
        'root: "/var/lib/criserver" -> "/elsewhere"' in caplog.text
    )


async def test_a_mistake_changes_nothing_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    def read() -> Config:
        raise ConfigError("/etc/criserver/config.toml:3", "unknown key 'x'")

    runtime = make_runtime()
    outcome = await reload.reload(runtime, read)
    assert runtime.config == Config()
    assert (runtime.network.configured, runtime.images.configured) == ([], [])
    why = "/etc/criserver/config.toml:3: unknown key 'x'"
    assert outcome == f"reload failed, nothing has changed: {why}"
    assert f"the configuration is not reloaded, nothing changes: {why}" in caplog.text


async def test_systemd_hears_of_every_reload_and_a_fault_ends_none_after_it() -> None:
    told: list[str] = []
    service = SimpleNamespace(reloading=lambda: told.append("reloading"), reloaded=told.append)
    hangup = asyncio.Event()
    answers = iter([RuntimeError("a fault"), Config()])

    def read() -> Config:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    task = asyncio.create_task(reload.reload_forever(make_runtime(), read, hangup, service))  # type: ignore[arg-type]
    for count in (2, 4):
        hangup.set()
        while len(told) < count:  # noqa: ASYNC110 - of the code under test
            await asyncio.sleep(0)
    task.cancel()
    assert told == [
        "reloading", "reload failed: a fault", "reloading", "reloaded, 0 settings changed"
    ]  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda each: each.key)
def test_the_schema_says_of_every_setting_whether_it_is_reloaded(setting: Any) -> None:
    key = setting.key.replace("NAME", "runc")
    assert config_schema.is_reloaded(Config, key) is setting.reloaded


def test_settings_survive_being_flattened_and_built_again() -> None:
    config = dataclasses.replace(Config(), runtimes={"runc": RuntimeConfig(path=Path("/bin/sh"))})
    assert config_schema.build(Config, config_schema.flatten(config)) == config
