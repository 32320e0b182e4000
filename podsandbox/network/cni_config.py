"""CNI network configurations: which file counts, and what it says (CNI spec 1.1, section 1)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The versions whose results name addresses the way this runtime reads them.
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

_LIST_SUFFIX = ".conflist"
_SUFFIXES = (".conf", _LIST_SUFFIX, ".json")

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

    def as_json(self) -> dict[str, Any]:
        """Return the form that is kept for the DEL."""
        return {"name": self.name, "cniVersion": self.version, "plugins": list(self.plugins)}


def parse(text: bytes, *, is_list: bool) -> CNIConfig:
    """Read a conflist, or a single plugin's conf as a list of one. Raises CNIConfigError."""
    try:
        document = json.loads(text)
    except ValueError as err:
        raise CNIConfigError(f"not JSON: {err}") from err
    if not isinstance(document, dict):
        raise CNIConfigError("not a JSON object")
    return from_json(document if is_list else _as_list(document))


def _as_list(plugin: dict[str, Any]) -> dict[str, Any]:
    if "plugins" in plugin and "type" not in plugin:
        raise CNIConfigError(f"a list of plugins, which belongs in a {_LIST_SUFFIX} file")
    return {"plugins": [plugin]} | {
        key: plugin[key] for key in ("name", "cniVersion", "cniVersions") if key in plugin
    }


def from_json(document: dict[str, Any]) -> CNIConfig:
    """Check a conflist's fields. Raises CNIConfigError."""
    name = document.get("name")
    if not isinstance(name, str) or not name or "/" in name:
        raise CNIConfigError(f"name is {name!r}, not the name of a network")
    plugins = document.get("plugins")
    if not isinstance(plugins, list) or not plugins:
        raise CNIConfigError("no plugins")
    for plugin in plugins:
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        # A plugin is a program's name in the plugin directories, never a path.
        if not isinstance(kind, str) or not kind or "/" in kind or kind in (".", ".."):
            raise CNIConfigError(f"a plugin's type is {kind!r}, not the name of a program")
    return CNIConfig(name, _version(document), tuple(plugins))


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


class ConfigDirectory:
    """The configurations of one directory; a change is seen at the next look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: list[tuple[str, int, int, int]] = []
        self._config: CNIConfig | None = None
        self._reasons: list[str] = []

    def exists(self) -> bool:
        """Say whether there is any configuration file, usable or not."""
        return bool(self._files())

    def load(self) -> tuple[CNIConfig | None, list[str]]:
        """Return the first usable configuration by file name, and why others were skipped."""
        files = self._files()
        if files != self._seen:
            self._config, self._reasons = _first_usable(self.path, [file[0] for file in files])
            self._seen = files
        return self._config, self._reasons

    def _files(self) -> list[tuple[str, int, int, int]]:
        try:
            with os.scandir(self.path) as entries:
                found = [entry for entry in entries if entry.name.endswith(_SUFFIXES)]
            files = []
            for entry in found:
                if entry.is_file():
                    stat = entry.stat()
                    files.append((entry.name, stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except FileNotFoundError:  # no directory, or a file went away under us
            return []
        return sorted(files)


def _first_usable(directory: Path, names: list[str]) -> tuple[CNIConfig | None, list[str]]:
    reasons: list[str] = []
    for name in names:
        try:
            with (directory / name).open("rb") as file:
                text = file.read(_MAX_SIZE)
            return parse(text, is_list=name.endswith(_LIST_SUFFIX)), reasons
        except (OSError, CNIConfigError) as err:
            reasons.append(f"{name}: {err}")
    return None, reasons
