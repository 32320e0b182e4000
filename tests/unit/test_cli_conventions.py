"""data/cli_conventions.txt: a test for every verb, flag and string of the OCI command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module

import pytest

from runtimeshim.cli import command
from tests.unit.test_oci_table import TESTS, functions

TABLE = TESTS / "unit/data/cli_conventions.txt"


def rows() -> list[tuple[str, str]]:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    pairs = [re.split(r"  +", line) for line in lines if line and not line.startswith("#")]
    return [(convention, test) for convention, test in pairs]


def flags() -> Iterator[str]:
    """Yield every verb and flag that the code has."""
    yield from (f"runtimeshim --{flag.names[0]}" for flag in command.FLAGS)
    for verb in command.VERBS:
        yield verb
        module = import_module(f"runtimeshim.cli.verbs.{verb}")
        yield from (f"{verb} --{flag.names[0]}" for flag in module.FLAGS)


def test_every_flag_has_a_row_and_every_row_a_flag() -> None:
    listed = {convention for convention, _ in rows()}
    of_flags = {each for each in listed if " --" in each or each in command.VERBS}
    assert of_flags == set(flags())


@pytest.mark.parametrize(("convention", "test"), rows())
def test_its_test_is_there(convention: str, test: str) -> None:
    file, _, function = test.partition("::")
    assert function in functions(file), convention
