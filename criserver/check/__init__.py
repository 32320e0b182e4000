"""`criserver check`: is this node fit to run pods, and if not, what is to be done?

It looks for itself and needs no daemon. Nothing is changed: what has to be tried (an overlay, a
cgroup, a rule) is undone at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from criserver import config as configuration
from criserver.check import host, kernel, network
from criserver.check.finding import Finding, Level, fail, good
from criserver.config import Config, ConfigError

NAME_WIDTH = 24

# Why a check itself may fail, for a person: a kernel that hides a file, a library that is missing.
CHECK_ERRORS = (OSError, ValueError)


def main(args: Sequence[str]) -> int:
    """Run `criserver check`; returns 0, or 1 when something has failed."""
    parser = argparse.ArgumentParser(
        prog="criserver check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Ends with 1 when a line says fail.",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    configuration.add_flags(parser)
    options = parser.parse_args(args)
    findings = list(_findings(options))
    if options.json:
        rows = [asdict(finding) | {"level": finding.level.value} for finding in findings]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        sys.stdout.write("".join(_lines(findings)))
    return 1 if any(finding.level is Level.FAIL for finding in findings) else 0


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    try:
        config = configuration.load_flags(options)
    except (ConfigError, OSError) as err:
        yield fail("configuration", str(err), "correct it; what follows is for the defaults")
        config = Config()
    else:
        yield good("configuration", "can be used")
    for module in (kernel, network, host):
        try:
            yield from module.check(config)
        except CHECK_ERRORS as err:
            name = module.__name__.rpartition(".")[2]
            yield fail(name, f"cannot be looked at: {err}", "run this as root, on the host")


def _lines(findings: Iterable[Finding]) -> Iterator[str]:
    for finding in findings:
        yield f"{finding.level.value:<5} {finding.name:<{NAME_WIDTH}} {finding.found}\n"
        if finding.advice:
            yield f"{'':<5} {'':<{NAME_WIDTH}} -> {finding.advice}\n"
