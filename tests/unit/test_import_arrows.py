"""Who imports whom: the table of docs/architecture.md, held for every module of the project.

Imports are read from the source, those inside functions and `if TYPE_CHECKING` too: an arrow that
is drawn late is an arrow. A module named by a literal in import_module() or __import__() counts.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("api", "criserver", "imageservice", "podsandbox", "runtimeshim")
ANY = ("*",)


@dataclass(frozen=True)
class Rule:
    """What the modules below a package may import; itself, and the standard library, always."""

    project: tuple[str, ...] = ()  # packages or modules of the project, with all below them
    not_project: tuple[str, ...] = ()  # exceptions from `project`
    third_party: tuple[str, ...] = ()  # top-level names, or ANY


ABOVE_THE_SHIM = Rule(("api", "runtimeshim.client", "runtimeshim.linux"), third_party=ANY)
# The rule of the longest matching name counts.
RULES: Mapping[str, Rule] = {
    "api": Rule(third_party=("google", "grpc")),
    "criserver": Rule(PACKAGES, third_party=ANY),
    "imageservice": ABOVE_THE_SHIM,
    "podsandbox": ABOVE_THE_SHIM,
    # What the spawner and the shims load, and the client's and their common wire format.
    "runtimeshim": Rule(not_project=("runtimeshim.client", "runtimeshim.cli")),
    "runtimeshim.client": Rule(("runtimeshim",), ("runtimeshim.cli",)),
    "runtimeshim.cli": Rule(("runtimeshim",)),
    "runtimeshim.shim": Rule(("runtimeshim",), ("runtimeshim.client", "runtimeshim.cli")),
    "runtimeshim.oci": Rule(
        ("runtimeshim",),
        ("runtimeshim.client", "runtimeshim.cli", "runtimeshim.shim", "runtimeshim.spawner"),
    ),
    "runtimeshim.spawner": Rule(("runtimeshim",), ("runtimeshim.client", "runtimeshim.cli")),
    "runtimeshim.ward": Rule(("runtimeshim",), ("runtimeshim.client", "runtimeshim.cli")),
    "runtimeshim.linux": Rule(),
}
# Names that only these may import, whatever else their rule allows.
ONLY_IN: Mapping[str, tuple[str, ...]] = {
    "grpc": ("criserver", "api.cri.api_pb2_grpc", "api.extension.extension_pb2_grpc"),
    "grpc_status": ("criserver",),
    "api.cri.api_pb2_grpc": ("criserver",),
    "api.extension.extension_pb2_grpc": ("criserver",),
    "ctypes": ("runtimeshim.linux",),
    "_ctypes": ("runtimeshim.linux",),
    "cffi": (),
}
# What runs in forks of the spawner: named so, and bound with all that it imports in the project.
WORKER_SUFFIX = "_worker"
WORKERS = ("imageservice.unpack_worker", "podsandbox.namespaces_worker")
WORKER_PROJECT = ("runtimeshim.linux",)
WORKER_THIRD_PARTY = ("isal", "zstandard")
# The event loop alone costs a shim ten times its private memory (EXECUTOR.md, section 3).
NOT_IN_THE_SPAWNER = ("asyncio", "concurrent", "ssl", "http", "sqlite3", "multiprocessing")
SPAWNER = ("runtimeshim.spawner", "runtimeshim.shim")

Sources = Mapping[str, str]  # module name -> source


def within(name: str, packages: Collection[str]) -> bool:
    """Whether `name` is one of the packages or lies below one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def project_sources() -> dict[str, str]:
    sources = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            sources[name] = path.read_text(encoding="utf-8")
    return sources


SOURCES = project_sources()


def is_package(module: str, sources: Sources) -> bool:
    return any(name.startswith(f"{module}.") for name in sources)


def imports(module: str, sources: Sources) -> set[str]:
    """The full names of the modules that `module` imports anywhere in its source."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(sources[module])):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(imported_from(node, module, sources))
        elif isinstance(node, ast.Call):
            found.update(imported_by_call(node))
    return found


def imported_from(node: ast.ImportFrom, module: str, sources: Sources) -> Iterator[str]:
    """`from a import b` is a.b where that is a module of ours, and a otherwise."""
    base = node.module or ""
    if node.level:
        parts = module.split(".")
        up = node.level - 1 if is_package(module, sources) else node.level
        base = ".".join([*parts[: len(parts) - up], *filter(None, [node.module])])
    for alias in node.names:
        submodule = f"{base}.{alias.name}"
        yield submodule if submodule in sources else base


def imported_by_call(node: ast.Call) -> Iterator[str]:
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in ("import_module", "__import__") and node.args:
        argument = node.args[0]
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            yield argument.value


def is_allowed(module: str, imported: str) -> bool:
    """Whether `module` may import `imported`."""
    for name, importers in ONLY_IN.items():
        if within(imported, [name]) and not within(module, importers):
            return False
    package = max((name for name in RULES if within(module, [name])), key=len)
    rule = RULES[package]
    top = imported.partition(".")[0]
    if top in PACKAGES:
        allowed = within(imported, (package, *rule.project))
        return allowed and not within(imported, rule.not_project)
    return top in sys.stdlib_module_names or top in rule.third_party or rule.third_party == ANY


def wrong_arrows(sources: Sources) -> list[str]:
    return sorted(
        f"{module} -> {imported}"
        for module in sources
        for imported in imports(module, sources)
        if not is_allowed(module, imported)
    )


def loaded_with(modules: Collection[str], sources: Sources) -> set[str]:
    """The project's modules that importing `modules` loads, parent packages among them."""
    loaded: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in loaded or module not in sources:
            continue
        loaded.add(module)
        waiting.extend(imports(module, sources))
        waiting.append(module.rpartition(".")[0])
    return loaded


def workers(sources: Sources) -> set[str]:
    return {name for name in sources if name.endswith(WORKER_SUFFIX)}


def wrong_in_workers(sources: Sources) -> list[str]:
    """Imports of what a worker loads that do not belong in the spawner's small children."""
    wrong = set()
    for worker in workers(sources):
        for module in loaded_with([worker], sources):
            if within(module, WORKER_PROJECT):
                continue  # held by its own, narrower rule
            for imported in imports(module, sources):
                if not is_allowed_in_worker(worker, imported):
                    wrong.add(f"{worker}: {module} -> {imported}")
    return sorted(wrong)


def is_allowed_in_worker(worker: str, imported: str) -> bool:
    top = imported.partition(".")[0]
    if top in PACKAGES:  # its own package: bound as the worker is, by being loaded with it
        return within(imported, (*WORKER_PROJECT, worker.partition(".")[0]))
    return top in WORKER_THIRD_PARTY or (
        top in sys.stdlib_module_names and not within(imported, NOT_IN_THE_SPAWNER)
    )


def heavy_in_spawner(sources: Sources) -> list[str]:
    return sorted(
        f"{module} -> {imported}"
        for module in loaded_with([*SPAWNER, *workers(sources)], sources)
        for imported in imports(module, sources)
        if within(imported, NOT_IN_THE_SPAWNER)
    )


def test_every_arrow_is_in_the_table() -> None:
    assert wrong_arrows(SOURCES) == []


def test_spawner_children_load_only_the_small_modules() -> None:
    assert wrong_in_workers(SOURCES) == []


def test_the_spawner_and_shims_load_no_event_loop() -> None:
    assert heavy_in_spawner(SOURCES) == []


@pytest.mark.parametrize("module", [*WORKERS, *SPAWNER])
def test_the_modules_that_the_rules_name_exist(module: str) -> None:
    assert module in list(SOURCES)


def test_the_table_in_the_documentation_names_the_packages_of_the_rules() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    section = page.partition("## Who imports whom")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    named: set[str] = set()
    for row in rows[2:]:  # below the header and its rule
        names = [name.strip() for name in row.split(",")]
        package = names[0].partition(".")[0]
        named.update(package + name if name.startswith(".") else name for name in names)
    assert named
    assert named <= set(RULES)


WRONG = [
    ("podsandbox.lifecycle", "import imageservice.store", "imageservice.store"),
    ("imageservice.service", "def f():\n    from podsandbox import network", "podsandbox.network"),
    ("imageservice.service", "import grpc.aio", "grpc.aio"),
    ("podsandbox.lifecycle", "from api.cri import api_pb2_grpc", "api.cri.api_pb2_grpc"),
    ("podsandbox.lifecycle", "from runtimeshim import spawner", "runtimeshim.spawner"),
    ("podsandbox.lifecycle", "from criserver.config import Config", "criserver.config"),
    ("criserver.server", "from ctypes import CDLL", "ctypes"),
    ("api.errors", "import grpc", "grpc"),
    ("api.errors", "from criserver import config", "criserver.config"),
    ("runtimeshim.oci.rootfs", "from .. import shim", "runtimeshim.shim"),
    ("runtimeshim.oci.rootfs", "import aiohttp", "aiohttp"),
    ("runtimeshim.shim.loop", "from api.errors import CRIError", "api.errors"),
    ("runtimeshim.shim.loop", "from runtimeshim.client import Shim", "runtimeshim.client"),
    ("runtimeshim.wire", "from runtimeshim import client", "runtimeshim.client"),
    ("runtimeshim.linux.mounts", "from ..oci import rootfs", "runtimeshim.oci.rootfs"),
    ("runtimeshim.linux.mounts", "import pyroute2", "pyroute2"),
    ("criserver.server", "import importlib\nimportlib.import_module('ctypes.util')", "ctypes.util"),
    (
        "imageservice.service",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import criserver.config",
        "criserver.config",
    ),
]
RIGHT = [
    ("criserver.server", "import grpc.aio, imageservice.service\nfrom runtimeshim import client"),
    ("podsandbox.lifecycle", "import pyroute2\nfrom runtimeshim.client import Spawner"),
    ("podsandbox.lifecycle", "from runtimeshim import linux\nfrom . import network"),
    ("imageservice.service", "from api import errors\nfrom api.cri import api_pb2\nimport aiohttp"),
    ("runtimeshim.linux.mounts", "import ctypes, os\nfrom . import syscalls"),
    ("runtimeshim.shim.loop", "import selectors\nfrom runtimeshim.oci import rootfs"),
    ("runtimeshim.wire", "from runtimeshim import linux\nimport json"),
    ("runtimeshim.client", "import asyncio\nfrom runtimeshim import wire"),
    ("api.cri.api_pb2_grpc", "import grpc\nfrom api.cri import api_pb2"),
]
FAKE_MODULES = (
    "api",
    "api.errors",
    "api.cri",
    "api.cri.api_pb2",
    "api.cri.api_pb2_grpc",
    "criserver",
    "criserver.config",
    "criserver.server",
    "imageservice",
    "imageservice.service",
    "imageservice.store",
    "podsandbox",
    "podsandbox.lifecycle",
    "podsandbox.network",
    "runtimeshim",
    "runtimeshim.client",
    "runtimeshim.linux",
    "runtimeshim.linux.mounts",
    "runtimeshim.linux.syscalls",
    "runtimeshim.oci",
    "runtimeshim.oci.rootfs",
    "runtimeshim.shim",
    "runtimeshim.shim.loop",
    "runtimeshim.spawner",
    "runtimeshim.wire",
)


def fake(changed: Mapping[str, str]) -> dict[str, str]:
    return {**dict.fromkeys(FAKE_MODULES, ""), **changed}


@pytest.mark.parametrize(("module", "source", "imported"), WRONG)
def test_a_wrong_arrow_is_found(module: str, source: str, imported: str) -> None:
    assert wrong_arrows(fake({module: source})) == [f"{module} -> {imported}"]


@pytest.mark.parametrize(("module", "source"), RIGHT)
def test_a_right_arrow_passes(module: str, source: str) -> None:
    assert wrong_arrows(fake({module: source})) == []


@pytest.mark.parametrize(
    ("changed", "arrow"),
    [
        ({"imageservice.unpack_worker": "import asyncio"}, "imageservice.unpack_worker -> asyncio"),
        ({"imageservice.unpack_worker": "import aiohttp"}, "imageservice.unpack_worker -> aiohttp"),
        (
            {
                "imageservice.unpack_worker": "from imageservice import store",
                "imageservice.store": "def f():\n    import api.errors",
            },
            "imageservice.store -> api.errors",
        ),
        (
            {"imageservice.unpack_worker": "", "imageservice": "import sqlite3"},
            "imageservice -> sqlite3",
        ),
        (
            {"imageservice.unpack_worker": "from runtimeshim.client import Rootfs"},
            "imageservice.unpack_worker -> runtimeshim.client",
        ),
    ],
)
def test_a_worker_that_loads_too_much_is_found(changed: dict[str, str], arrow: str) -> None:
    assert wrong_in_workers(fake(changed)) == [f"imageservice.unpack_worker: {arrow}"]


def test_a_small_worker_passes() -> None:
    source = "import os, tarfile\nimport isal, zstandard\nfrom runtimeshim.linux import mounts"
    assert wrong_in_workers(fake({"imageservice.unpack_worker": source})) == []


def test_an_event_loop_behind_the_spawner_is_found() -> None:
    changed = {"runtimeshim.spawner": "from . import wire", "runtimeshim.wire": "import asyncio"}
    assert heavy_in_spawner(fake(changed)) == ["runtimeshim.wire -> asyncio"]
