"""CDI specs on disk: looked up by name, read when a container asks for a device.

    DIRECTORY/*.json, *.yaml, *.yml   one spec each, of one kind ("vendor.com/class")

A device of a later directory goes before one of an earlier directory. Two files of one directory
that have the same device make it unusable: nobody could tell which is meant.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.errors import FailedPreconditionError, InvalidArgumentError

SUFFIXES = (".json", ".yaml", ".yml")

# Containerd and CRI-O read the names from there, too, for kubelets older than 1.28.
ANNOTATION_PREFIX = "cdi.k8s.io/"

# SPEC.md, "Kind" and "CDI Devices".
_VENDOR = r"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
_CLASS = r"[A-Za-z](?:[A-Za-z0-9_-]*[A-Za-z0-9])?"
_DEVICE = r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?"
KIND = re.compile(f"{_VENDOR}/{_CLASS}")
DEVICE = re.compile(_DEVICE)
NAME = re.compile(f"({_VENDOR}/{_CLASS})=({_DEVICE})")

# The newest specification that is understood, with the older ones that it contains.
MAX_VERSION = (1, 1)

# No vendor's file comes near this; a larger one is a mistake, or worse.
MAX_FILE = 16 << 20

Edits = Mapping[str, Any]


class _SpecError(Exception):
    """A file that is no CDI spec; the message says why."""


@dataclass(frozen=True)
class Spec:
    """One file: the edits that all its devices share, and each device's own."""

    path: Path
    kind: str
    edits: Edits
    devices: Mapping[str, Edits]


def wanted(devices: Sequence[str], annotations: Mapping[str, str]) -> list[str]:
    """Return the qualified device names of a request, each once, the annotations' last.

    Raises InvalidArgumentError for what is no name, as vendor.com/class=device is.
    """
    names = dict.fromkeys(devices)
    for key, value in sorted(annotations.items()):
        if key.startswith(ANNOTATION_PREFIX):
            names.update(dict.fromkeys(filter(None, map(str.strip, value.split(",")))))
    for name in names:
        if not NAME.fullmatch(name):
            raise InvalidArgumentError(
                f"CDI device {name[:256]!r}: not of the form vendor.com/class=device"
            )
    return list(names)


def resolve(names: Sequence[str], directories: Sequence[Path]) -> list[Edits]:
    """Return the edits for devices in the order in which they apply; blocking.

    The edits that a spec's devices share come once, before the first of its devices. Raises
    FailedPreconditionError naming the devices that are not there, with the files that are broken.
    """
    specs, faults = _load(directories)
    edits: list[Edits] = []
    used: set[Path] = set()
    missing = []
    for name in names:
        kind, device = name.split("=", 1)
        spec = _find(specs, kind, device)
        if spec is None:
            missing.append(name)
            continue
        if spec.path not in used:
            used.add(spec.path)
            edits.append(spec.edits)
        edits.append(spec.devices[device])
    if missing:
        searched = ", ".join(map(str, directories))
        why = "".join(f"; {fault}" for fault in faults)
        raise FailedPreconditionError(
            f"no CDI device {', '.join(missing)} in the specs of {searched}{why}"
        )
    return edits


def _find(specs: Sequence[Sequence[Spec]], kind: str, device: str) -> Spec | None:
    """Return the spec that has the device, of the last directory that has any."""
    for in_directory in reversed(specs):
        found = [spec for spec in in_directory if spec.kind == kind and device in spec.devices]
        if len(found) > 1:
            files = ", ".join(str(spec.path) for spec in found)
            raise FailedPreconditionError(
                f"CDI device {kind}={device} is in several files: {files}; remove all but one"
            )
        if found:
            return found[0]
    return None


def _load(directories: Sequence[Path]) -> tuple[list[list[Spec]], list[str]]:
    """Read all specs by directory; a broken file is a fault, and the others count."""
    specs, faults = [], []
    for directory in directories:
        found = []
        for path in _files(directory):
            try:
                found.append(_read(path))
            except (_SpecError, OSError) as err:
                faults.append(f"{path} cannot be used: {err}")
        specs.append(found)
    return specs, faults


def _files(directory: Path) -> Iterator[Path]:
    try:
        names = sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    yield from (path for path in names if path.suffix in SUFFIXES and path.is_file())


def _read(path: Path) -> Spec:
    if path.stat().st_size > MAX_FILE:
        raise _SpecError(f"it is larger than {MAX_FILE} bytes")
    content = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".json":
        try:
            document = json.loads(content)
        except ValueError as err:
            raise _SpecError(f"it is not JSON: {err}") from err
    else:
        document = _parse_yaml(content)
    return _parse(path, document)


def _parse_yaml(content: str) -> Any:
    # Imported when the first such file comes: it costs a megabyte and 20 ms.
    yaml = importlib.import_module("yaml")
    try:
        return yaml.safe_load(content)
    except yaml.YAMLError as err:
        raise _SpecError(f"it is not YAML: {err}") from err


def _parse(path: Path, document: Any) -> Spec:
    if not isinstance(document, dict):
        raise _SpecError("it is not an object")
    _check_version(document.get("cdiVersion"))
    kind = document.get("kind")
    if not isinstance(kind, str) or not KIND.fullmatch(kind):
        raise _SpecError(f"kind {kind!r} is not of the form vendor.com/class")
    devices = document.get("devices")
    if not isinstance(devices, list) or not devices:
        raise _SpecError("it has no devices")
    found: dict[str, Edits] = {}
    for index, device in enumerate(devices):
        name, edits = _device(f"devices[{index}]", device)
        if name in found:
            raise _SpecError(f"device {name!r} is there twice")
        found[name] = edits
    return Spec(path, kind, _edits("the spec", document), found)


def _check_version(version: Any) -> None:
    match = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+)", version) if isinstance(version, str) else None
    if match is None:
        raise _SpecError(f"cdiVersion {version!r} is not a version")
    if (int(match[1]), int(match[2])) > MAX_VERSION:
        raise _SpecError(f"cdiVersion {version} is newer than {'.'.join(map(str, MAX_VERSION))}.x")


def _device(where: str, device: Any) -> tuple[str, Edits]:
    if not isinstance(device, dict):
        raise _SpecError(f"{where} is not an object")
    name = device.get("name")
    if not isinstance(name, str) or not DEVICE.fullmatch(name):
        raise _SpecError(f"{where}: {name!r} is not a device's name")
    return name, _edits(where, device)


def _edits(where: str, holder: Mapping[str, Any]) -> Edits:
    edits = holder.get("containerEdits") or {}
    if not isinstance(edits, dict):
        raise _SpecError(f"containerEdits of {where} is not an object")
    return edits
