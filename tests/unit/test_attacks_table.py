"""data/attacks.txt: a test for every attack; mutations.py: what makes each of them fail."""

from __future__ import annotations

import pytest

from tests.mutations import MUTATIONS, Mutation
from tests.unit.test_oci_table import TESTS, functions

TABLE = TESTS / "unit/data/attacks.txt"

# Another list has the changes that take their defences out.
ELSEWHERE = {"images: hostile archives and registries"}


def rows() -> dict[str, list[str]]:
    """Return the lines of the table: attack -> its tests."""
    found: dict[str, list[str]] = {}
    attack = ""
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("    "):
            found[attack].append(line.strip())
        elif line and not line.startswith("#"):
            attack = line
            found[attack] = []
    return found


def proofs(attack: str) -> list[str]:
    return [proof for proof in rows()[attack] if not proof.startswith("-- ")]


def test_every_attack_of_the_list_is_there() -> None:
    areas = [attack.partition(":")[0] for attack in rows()]
    assert {area: areas.count(area) for area in areas} == {
        "executable": 5,
        "paths": 7,
        "privileges": 7,
        "daemon": 5,
        "images": 1,
    }


@pytest.mark.parametrize("attack", rows())
def test_its_tests_are_there(attack: str) -> None:
    assert proofs(attack)
    for test in proofs(attack):
        file, _, function = test.partition("::")
        assert function in functions(file), test


@pytest.mark.parametrize("attack", sorted(set(rows()) - ELSEWHERE))
def test_a_defence_can_be_taken_out(attack: str) -> None:
    failing = {test for mutation in MUTATIONS for test in mutation.tests}
    assert failing & set(proofs(attack))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_fits_the_code(mutation: Mutation) -> None:
    known = {test for attack in rows() for test in proofs(attack)}
    assert set(mutation.tests) <= known
    for edit in mutation.edits:
        text = (TESTS.parent / edit.file).read_text(encoding="utf-8")
        assert text.count(edit.old) == 1, edit.file
        assert edit.old != edit.new
