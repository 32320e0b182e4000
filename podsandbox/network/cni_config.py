"""CNI network configurations: which file counts, and what it says (CNI spec 1.1, section 1)."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# The versions whose results name addresses the way this runtime reads them.
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

_CONF_SUFFIX = ".conf"
_LIST_SUFFIX = ".conflist"
_SUFFIXES = (_CONF_SUFFIX, _LIST_SUFFIX, ".json")

# A configuration is a few kilobytes; this bounds what is read of a file that is none.
_MAX_SIZE = 1 << 20

Plugin = dict[str, Any]


class CNIConfigError(Exception):
    """A file that cannot be used; the message says why."""


@dataclass(frozen=True)
class CNIConfig:
    """One network: its plugins in the order of ADD, each as it stands in the file."""

    name: str
    version: str
    plugins: tuple[Plugin, ...]
    disable_check: bool = False
    disable_gc: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the form that is kept for the DEL."""
        return {
            "name": self.name,
            "cniVersion": self.version,
            "plugins": list(self.plugins),
            "disableCheck": self.disable_check,
            "disableGC": self.disable_gc,
        }

    def since(self, version: str) -> bool:
        """Say whether the network speaks at least this version of CNI."""
        return VERSIONS.index(self.version) >= VERSIONS.index(version)


def parse(text: bytes, *, is_list: bool, more: Path | None = None) -> CNIConfig:
    """Read a conflist, or a single plugin's conf as a list of one. Raises CNIConfigError.

    `more` is the directory that may hold more plugins of a list, in a directory of its name.
    """
    document = _document(text)
    if not is_list:
        return from_json(_as_list(document))
    inlined, name = document.get("plugins", []), document.get("name")
    only_inlined = _is_true(document, "loadOnlyInlinedPlugins")
    if more and not only_inlined and _is_name(name) and isinstance(inlined, list):
        document["plugins"] = [*inlined, *_plugins_in(more / str(name))]
    return from_json(document)


def _document(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as err:
        raise CNIConfigError(f"not JSON: {err}") from err
    if not isinstance(document, dict):
        raise CNIConfigError("not a JSON object")
    return document


def _plugins_in(directory: Path) -> list[Plugin]:
    """Return the plugins that others have added to a network (spec 1.1, section 1)."""
    plugins = []
    for path in sorted(directory.glob(f"*{_CONF_SUFFIX}")):
        try:
            plugins.append(_document(_read(path)))
        except CNIConfigError as err:
            raise CNIConfigError(f"{directory.name}/{path.name}: {err}") from err
    return plugins


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_SIZE)


def _as_list(plugin: dict[str, Any]) -> dict[str, Any]:
    if "plugins" in plugin and "type" not in plugin:
        raise CNIConfigError(f"a list of plugins, which belongs in a {_LIST_SUFFIX} file")
    return {"plugins": [plugin]} | {
        key: plugin[key] for key in ("name", "cniVersion", "cniVersions") if key in plugin
    }


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name


def _is_true(document: dict[str, Any], key: str) -> bool:
    """Read a switch: libcni takes the words as well as the values."""
    value = document.get(key, False)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise CNIConfigError(f"{key} is {value!r}, neither true nor false")
    return value


def from_json(document: dict[str, Any]) -> CNIConfig:
    """Check a conflist's fields. Raises CNIConfigError."""
    name = document.get("name")
    if not _is_name(name):
        raise CNIConfigError(f"name is {name!r}, not the name of a network")
    plugins = document.get("plugins")
    if not isinstance(plugins, list) or not plugins:
        raise CNIConfigError("no plugins")
    for plugin in plugins:
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        # A plugin is a program's name in the plugin directories, never a path.
        if not _is_name(kind):
            raise CNIConfigError(f"a plugin's type is {kind!r}, not the name of a program")
    return CNIConfig(
        str(name),
        _version(document),
        tuple(plugins),
        _is_true(document, "disableCheck"),
        _is_true(document, "disableGC"),
    )


def _version(document: dict[str, Any]) -> str:
    """Return the highest version that the file offers and we know (spec 1.1, cniVersions)."""
    offered = document.get("cniVersions", [])
    if not isinstance(offered, list):
        raise CNIConfigError("cniVersions is not a list")
    offered = [*offered, document.get("cniVersion")]
    known: list[str] = [version for version in offered if version in VERSIONS]
    if not known:
        wanted = ", ".join(str(version) for version in offered)
        raise CNIConfigError(f"cniVersion {wanted} is none of {', '.join(VERSIONS)}")
    return max(known, key=VERSIONS.index)


class _File(NamedTuple):
    """One file as it was seen; another one of the same name differs in one of these."""

    path: Path
    inode: int
    size: int
    modified: int
    changed: int


class ConfigDirectories:
    """The configurations of some directories, in their order; a change is seen at the next look.

    Each look lists the directories, some 20 us: unlike a watch, that misses nothing, however a
    file or a directory was exchanged.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._seen: list[_File] = []
        self._config: CNIConfig | None = None
        self._reasons: list[str] = []

    def __str__(self) -> str:
        return ", ".join(map(str, self._paths))

    def exists(self) -> bool:
        """Say whether there is any configuration file, usable or not."""
        return any(file.path.parent in self._paths for file in self._files())

    def load(self) -> tuple[CNIConfig | None, list[str]]:
        """Return the first usable configuration, and why those before it were skipped."""
        files = self._files()
        if files != self._seen:
            names = [file.path for file in files if file.path.parent in self._paths]
            self._config, self._reasons = _first_usable(names)
            self._seen = files
        return self._config, self._reasons

    def _files(self) -> list[_File]:
        return [file for path in self._paths for file in _files_in(path)]


def _files_in(directory: Path) -> list[_File]:
    """Return the configuration files by name, with those of the networks' own directories."""
    files, networks = [], []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir():
                    networks.append(Path(entry.path))
                elif entry.name.endswith(_SUFFIXES) and (file := _seen(entry)):
                    files.append(file)
    except FileNotFoundError:
        return []
    for network in networks:
        with contextlib.suppress(FileNotFoundError), os.scandir(network) as entries:
            files += [file for e in entries if e.name.endswith(_CONF_SUFFIX) and (file := _seen(e))]
    return sorted(files)


def _seen(entry: os.DirEntry[str]) -> _File | None:
    try:
        stat = entry.stat()
    except FileNotFoundError:  # it went away under us, or is a link to nothing
        return None
    return _File(Path(entry.path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _first_usable(paths: Sequence[Path]) -> tuple[CNIConfig | None, list[str]]:
    reasons: list[str] = []
    for path in paths:
        is_list = path.name.endswith(_LIST_SUFFIX)
        try:
            return parse(_read(path), is_list=is_list, more=path.parent), reasons
        except (OSError, CNIConfigError) as err:
            reasons.append(f"{path.name}: {err}")
    return None, reasons
