"""What the command line does not import on the way to a container: it would take half the time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = {
    "argparse",
    "collections",
    "contextlib",
    "dataclasses",
    "enum",
    "functools",
    "hashlib",
    "importlib",
    "inspect",
    "json",
    "re",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "termios",
    "typing",
}
LIST = """\
import sys
sys.path.insert(0, sys.argv[1])
import runtimeshim.cli.command
__import__("runtimeshim.cli.verbs." + sys.argv[2])
from runtimeshim.linux import cgroups
cgroups.manager()
print(*sys.modules)
"""


@pytest.mark.parametrize(
    "verb", ["create", "start", "run", "exec", "state", "kill", "delete", "pause", "resume"]
)
def test_a_verb_imports_nothing_heavy(verb: str) -> None:
    # Without site, as cli/bin/runtimeshim starts it: site's own imports would hide these.
    command = [sys.executable, "-I", "-S", "-c", LIST, str(REPOSITORY), verb]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert f"runtimeshim.cli.verbs.{verb}" in listed
    assert not HEAVY & set(listed)
