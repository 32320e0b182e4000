"""The OCI command line: run a bundle in the foreground by the same executor, without a daemon."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from importlib.metadata import version
from typing import Any

from runtimeshim.linux import capabilities, cgroups
from runtimeshim.oci import default_spec, mount_options, namespaces
from runtimeshim.oci.container import Container, load
from runtimeshim.oci.errors import StageError

OCI_VERSION = "1.2.0"

# What run passes on to the container; the others are its own business or cannot be caught.
FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: the container's for run, 1 for an error."""
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options))
    except StageError as err:
        print(f"runtimeshim: {options.verb}: {err.stage}: {err.message}", file=sys.stderr)
        return 1
    except OSError as err:
        print(f"runtimeshim: {options.verb}: {err}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="runtimeshim", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="create, start and wait for a container; stdio is passed on")
    run.add_argument("-b", "--bundle", default=".", help="the bundle's directory")
    run.add_argument("id", help="the container's name: its cgroup, where the spec names none")
    run.set_defaults(run=_run)
    spec = verbs.add_parser("spec", help="write a config.json to begin with")
    spec.add_argument("-b", "--bundle", default=".", help="where to write it")
    spec.set_defaults(run=_spec)
    features = verbs.add_parser("features", help="print what this runtime can do, as JSON")
    features.set_defaults(run=_features)
    return parser


def _version() -> str:
    return f"runtimeshim version {version('criserver')}\nspec: {OCI_VERSION}"


def _run(options: argparse.Namespace) -> int:
    bundle = os.path.abspath(options.bundle)
    spec = dict(load(bundle))
    if (spec.get("process") or {}).get("terminal"):
        raise StageError("spec", "process.terminal: run passes its own stdio on; set it to false")
    linux = spec["linux"] = dict(spec.get("linux") or {})
    linux["cgroupsPath"] = linux.get("cgroupsPath") or f"/runtimeshim/{options.id}"
    container = Container(bundle, spec, None)
    container.create(None, stdio=(0, 1, 2))
    try:
        for warning in container.warnings:
            print(f"runtimeshim: warning: {warning}", file=sys.stderr)
        for number in FORWARDED:
            signal.signal(number, lambda n, _: os.kill(container.pid, n))
        container.start()
        failure = container.started()
        _, status = os.waitpid(container.pid, 0)
    finally:
        container.delete_cgroup()
    if failure is not None:
        raise failure
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _spec(options: argparse.Namespace) -> int:
    path = os.path.join(options.bundle, "config.json")
    with open(path, "x", encoding="utf-8") as out:
        json.dump(default_spec.default_spec(OCI_VERSION), out, indent=1)
        out.write("\n")
    return 0


def _features(_: argparse.Namespace) -> int:
    print(json.dumps(features(), indent=1))
    return 0


def features() -> dict[str, Any]:
    """Return the features document of the runtime-spec (features.md)."""
    hierarchy = cgroups.manager()
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "mountOptions": mount_options.known(),
        "linux": {
            "namespaces": sorted(namespaces.FLAGS),
            "capabilities": list(capabilities.KNOWN[: capabilities.last() + 1]),
            "cgroup": {
                "v1": hierarchy.version == 1,
                "v2": hierarchy.version == 2,
                "systemd": False,
            },
            "seccomp": {"enabled": True},
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
        },
    }


if __name__ == "__main__":
    sys.exit(main())
