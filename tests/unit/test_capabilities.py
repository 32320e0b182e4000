"""Capability names and sets, without touching the process's own."""

from __future__ import annotations

import pytest

from runtimeshim.linux import capabilities
from runtimeshim.linux.capabilities import KNOWN, Sets, prepare, to_mask, to_names

ALL = (1 << len(KNOWN)) - 1
ROOT = Sets(ALL, ALL, ALL, 0, 0)


def masks(sets: Sets) -> tuple[int, int, int, int, int]:
    return sets.bounding, sets.effective, sets.permitted, sets.inheritable, sets.ambient


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("CAP_CHOWN", 0),
        ("CAP_SETPCAP", 8),
        ("CAP_SYS_ADMIN", 21),
        ("CAP_MKNOD", 27),
        ("CAP_SETFCAP", 31),
        ("CAP_MAC_OVERRIDE", 32),
        ("CAP_CHECKPOINT_RESTORE", 40),
    ],
)
def test_names_have_the_kernels_numbers(name: str, number: int) -> None:
    assert to_mask([name]) == 1 << number


def test_masks_and_names_are_inverse() -> None:
    assert to_names(to_mask(KNOWN)) == list(KNOWN)
    assert len(set(KNOWN)) == 41


@pytest.mark.parametrize("name", ["CAP_FOO", "chown", "CHOWN", ""])
def test_an_unknown_name_is_an_error_that_shows_it(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown capability {name!r}"):
        to_mask(["CAP_KILL", name])


def test_what_is_asked_for_and_held_is_granted() -> None:
    names = ["CAP_CHOWN", "CAP_KILL"]
    wanted = dict.fromkeys(("bounding", "permitted", "effective"), names)
    sets, warnings = prepare(wanted, ROOT)
    assert masks(sets) == (0b100001, 0b100001, 0b100001, 0, 0)
    assert warnings == []


def test_what_the_caller_lacks_or_nobody_knows_is_dropped_with_a_warning() -> None:
    held = Sets(ALL, ALL, ALL & ~to_mask(["CAP_KILL"]), 0, 0)
    wanted = {
        "bounding": ["CAP_KILL"],
        "permitted": ["CAP_KILL", "CAP_CHOWN", "CAP_NEW"],
        "effective": ["CAP_KILL", "CAP_CHOWN"],
    }
    sets, warnings = prepare(wanted, held)
    chown = to_mask(["CAP_CHOWN"])
    assert masks(sets) == (to_mask(["CAP_KILL"]), chown, chown, 0, 0)
    assert warnings == [
        "permitted capabilities that cannot be granted: CAP_NEW, CAP_KILL",
        "effective capabilities that cannot be granted: CAP_KILL",
    ]


def test_inheritable_is_empty_whatever_the_spec_says() -> None:
    names = ["CAP_CHOWN"]
    wanted = dict.fromkeys(("bounding", "permitted", "effective", "inheritable"), names)
    assert prepare(wanted, ROOT)[0].inheritable == 0


def test_ambient_brings_its_inheritable_and_needs_permitted() -> None:
    wanted = {"permitted": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN", "CAP_KILL"]}
    sets, warnings = prepare(wanted, ROOT)
    assert sets.ambient == sets.inheritable == to_mask(["CAP_CHOWN"])
    assert warnings == ["ambient capabilities that cannot be granted: CAP_KILL"]


def test_nothing_asked_for_is_nothing() -> None:
    sets, warnings = prepare({}, ROOT)
    assert (masks(sets), warnings) == ((0, 0, 0, 0, 0), [])


def test_the_last_capability_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "_last", 37)
    assert capabilities.last() == 37
