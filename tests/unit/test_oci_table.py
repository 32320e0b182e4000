"""data/oci_fields.txt: a proof for every field of config.json that the specification has.

data/oci_spec_1.3.txt is the specification's own list of fields and of the values that it names.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from runtimeshim.linux import seccomp
from runtimeshim.oci import fields, namespaces

TESTS = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).parent / "data/oci_fields.txt"
SPECIFICATION = Path(__file__).parent / "data/oci_spec_1.3.txt"

# Where each field's values are in our code.
VALUES = {
    "linux.namespaces[].type": namespaces.FLAGS,
    "process.ioPriority.class": fields.IO_CLASSES,
    "process.scheduler.policy": fields.POLICIES,
    "process.scheduler.flags": fields.SCHEDULER_FLAGS,
    "linux.personality.domain": fields.PERSONALITIES,
    "linux.memoryPolicy.mode": fields.MEMORY_MODES,
    "linux.memoryPolicy.flags": fields.MEMORY_FLAGS,
    "linux.seccomp.flags": seccomp.FLAGS,
    "linux.seccomp.defaultAction": seccomp.ACTIONS,
    "linux.seccomp.syscalls[].args[].op": seccomp.OPERATORS,
}
# libseccomp resolves these by name, and 2.5 is older than some: compile_profile says so then.
RESOLVED = "linux.seccomp.architectures"


def specified() -> list[str]:
    lines = SPECIFICATION.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def rows() -> list[tuple[str, str]]:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    pairs = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    return [(field, proof) for field, proof in pairs]


def known(check: Any, path: str = "") -> Iterator[str]:
    """Yield the fields of a check, as the combinators of oci/schema.py hold them."""
    held = {
        name: cell.cell_contents
        for name, cell in zip(check.__code__.co_freevars, check.__closure__ or (), strict=True)
    }
    maker = check.__qualname__.partition(".")[0]
    if maker == "record":
        for name, inner in held["known"].__self__.items():
            yield from known(inner, f"{path}.{name}" if path else name)
    elif maker == "listed" and held["item"].__qualname__.startswith("record."):
        yield from known(held["item"], f"{path}[]")
    elif maker == "keyed":
        yield from known(held["item"], path + "{}")
    else:
        yield path


@cache
def functions(file: str) -> frozenset[str]:
    path = TESTS / file if file.startswith("unit/") else TESTS / "integration" / file
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


def test_every_field_has_a_row_and_every_row_a_field() -> None:
    assert sorted({field for field, _ in rows()}) == sorted(set(known(fields.SPEC)))


def test_no_field_of_the_specification_is_missing_and_none_is_made_up() -> None:
    listed = {line for line in specified() if " = " not in line}
    assert listed == set(known(fields.SPEC))


def test_no_value_that_the_specification_names_is_missing() -> None:
    named = [line.split(" = ") for line in specified() if " = " in line]
    assert {field for field, _ in named} == {*VALUES, RESOLVED}
    missing = [
        (field, value) for field, value in named if field != RESOLVED and value not in VALUES[field]
    ]
    assert missing == []


def test_the_table_reaches_the_innermost_fields() -> None:
    found = set(known(fields.SPEC))
    assert "linux.seccomp.syscalls[].args[].valueTwo" in found
    assert "linux.resources.rdma{}.hcaObjects" in found
    assert len(found) > 150


@pytest.mark.parametrize("field", sorted({field for field, _ in rows()}))
def test_the_proof_of_a_field_is_there(field: str) -> None:
    for proof in (proof for named, proof in rows() if named == field):
        if proof.startswith("-- "):
            assert len(proof) > 20  # a reason, not a gap
            named = [word for word in proof.split() if "::" in word]
        else:
            named = [proof]
        for test in named:
            file, _, function = test.partition("::")
            assert function in functions(file), test
