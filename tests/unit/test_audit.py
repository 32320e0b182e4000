"""The auditor's rules: seen twice, the same thing, nobody at work on it; and what it counts."""

import asyncio

import pytest

from api.errors import InternalError
from criserver.audit.auditor import Auditor
from criserver.audit.stray import Stray
from criserver.config_observability import AuditConfig


class Check:
    """Finds what a test has put there, and removes it."""

    kinds = ("thing", "loss")

    def __init__(self, *strays):
        self.there = set(strays)
        self.error = None

    async def find(self):
        if self.error:
            raise self.error
        return sorted(self.there, key=str)

    async def remove(self, stray):
        if self.error:
            raise self.error
        self.there.discard(stray)


def thing(name="a", mark="1", owner="", *, removable=True):
    return Stray("thing", name, mark, owner, removable=removable)


def auditor(*checks, busy=()):
    return Auditor(checks, lambda key: key in busy, settle=0)


async def test_what_two_sweeps_have_seen_is_a_stray_and_is_removed_only_when_asked():
    check = Check(thing())
    made = auditor(check)
    found = await made.audit(fix=False)
    assert [stray["name"] for stray in found["strays"]] == ["a"]
    assert (found["removed"], check.there) == ([], {thing()})
    assert made.strays == {"thing": 1, "loss": 0}
    found = await made.audit(fix=True)
    assert found["removed"] == found["strays"]
    assert check.there == set()
    assert made.removed == {"thing": 1, "loss": 0}
    assert (await made.audit(fix=False))["strays"] == []
    assert made.strays == {"thing": 0, "loss": 0}


async def test_what_is_another_thing_of_the_same_name_the_second_time_is_none():
    class Renewed(Check):
        async def find(self):
            found = [thing(mark=str(len(self.there)))]
            self.there.add(found[0])
            return found

    assert (await auditor(Renewed()).audit(fix=True))["strays"] == []


async def test_what_has_just_gone_astray_is_none_however_often_is_looked():
    looked = asyncio.Semaphore(0)

    class Watched(Check):
        async def find(self):
            looked.release()
            return await super().find()

    check = Watched(thing())
    made = Auditor([check], lambda _: False, settle=3600)
    sweeps = asyncio.create_task(made.audit_forever(lambda: AuditConfig(interval_seconds=0.001)))
    for _ in range(5):
        await looked.acquire()
    sweeps.cancel()
    assert (made.removed["thing"], check.there) == (0, {thing()})


async def test_what_somebody_is_at_work_on_is_none():
    busy = {"x"}
    check = Check(thing(owner="x"))
    made = auditor(check, busy=busy)
    assert (await made.audit(fix=True))["strays"] == []
    busy.clear()
    assert len((await made.audit(fix=True))["removed"]) == 1


async def test_what_its_owner_has_to_remove_is_left():
    check = Check(thing(removable=False))
    found = await auditor(check).audit(fix=True)
    assert (len(found["strays"]), found["removed"], len(check.there)) == (1, [], 1)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), InternalError("away")])
async def test_a_check_that_fails_is_told_and_keeps_no_other_from_its_work(error):
    broken, sound = Check(), Check(thing())
    broken.error = error
    found = await auditor(broken, sound).audit(fix=True)
    assert "thing, loss cannot be looked at" in found["failures"][0]
    assert len(found["removed"]) == 1


async def test_what_cannot_be_removed_is_told_and_stays_a_stray():
    class Stubborn(Check):
        async def remove(self, stray):
            raise OSError(16, "Device or resource busy")

    found = await auditor(Stubborn(thing())).audit(fix=True)
    assert found["removed"] == []
    assert found["failures"] == ["thing a cannot be removed: [Errno 16] Device or resource busy"]
