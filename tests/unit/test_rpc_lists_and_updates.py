"""Pages of streams, merged limits: the pure parts of their RPCs."""

from __future__ import annotations

import asyncio

import pytest

from api.cri import api_pb2 as cri
from criserver import paging
from criserver.operations import Operations
from criserver.paging import chunks, pages
from criserver.resources_merge import merged

Resources = cri.LinuxContainerResources


def test_pages_hold_each_item_once_and_are_never_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "PAGE_BYTES", 100)
    items = [cri.Container(id=str(n) * 30) for n in range(10)]
    made = list(pages(items))
    assert [each.id for page in made for each in page] == [each.id for each in items]
    assert [len(page) for page in made] == [3, 3, 3, 1]
    assert list(pages(list[cri.Container]())) == []


def test_an_item_that_is_larger_than_a_page_has_one_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paging, "PAGE_BYTES", 10)
    items = [cri.Container(id="a" * 50), cri.Container(id="b"), cri.Container(id="c" * 50)]
    assert [len(page) for page in pages(items)] == [1, 1, 1]


def test_chunks_are_all_there() -> None:
    assert [len(each) for each in chunks(range(101))] == [50, 50, 1]
    assert list(chunks([])) == []


MERGED = [
    ("nothing", {"cpu_shares": 5}, {}, {"cpu_shares": 5}),
    ("another field", {"cpu_shares": 5}, {"cpu_quota": 6}, {"cpu_shares": 5, "cpu_quota": 6}),
    ("the same field", {"cpu_shares": 5}, {"cpu_shares": 6}, {"cpu_shares": 6}),
    ("unlimited", {"cpu_quota": 5}, {"cpu_quota": -1}, {"cpu_quota": -1}),
    ("text", {"cpuset_cpus": "0"}, {"cpuset_cpus": "1"}, {"cpuset_cpus": "1"}),
    ("unified", {"unified": {"a": "1", "b": "2"}}, {"unified": {"b": "3"}},
     {"unified": {"a": "1", "b": "3"}}),
    ("memory", {"memory_limit_in_bytes": 5, "memory_swap_limit_in_bytes": 9},
     {"memory_limit_in_bytes": 6},
     {"memory_limit_in_bytes": 6, "memory_swap_limit_in_bytes": 6}),
    ("memory and swap", {"memory_limit_in_bytes": 5},
     {"memory_limit_in_bytes": 6, "memory_swap_limit_in_bytes": 8},
     {"memory_limit_in_bytes": 6, "memory_swap_limit_in_bytes": 8}),
    ("memory without swap", {"memory_limit_in_bytes": 5}, {"memory_limit_in_bytes": 6},
     {"memory_limit_in_bytes": 6}),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), [row[1:] for row in MERGED])
def test_what_an_update_leaves_out_stays(
    old: dict[str, object], new: dict[str, object], expected: dict[str, object]
) -> None:
    before = Resources(**old)  # type: ignore[arg-type]
    assert merged(before, Resources(**new)) == Resources(**expected)  # type: ignore[arg-type]
    assert before == Resources(**old), "the old ones are not touched"  # type: ignore[arg-type]


def test_huge_pages_are_merged_by_size() -> None:
    def limit(size: str, value: int) -> cri.HugepageLimit:
        return cri.HugepageLimit(page_size=size, limit=value)

    old = Resources(hugepage_limits=[limit("2MB", 1), limit("1GB", 2)])
    new = Resources(hugepage_limits=[limit("1GB", 0), limit("64KB", 3)])
    assert list(merged(old, new).hugepage_limits) == [
        limit("2MB", 1),
        limit("1GB", 0),
        limit("64KB", 3),
    ]


async def test_operations_that_would_do_different_things_are_not_joined() -> None:
    operations, done = Operations(), []

    async def work(value: str) -> str:
        await asyncio.sleep(0)
        done.append(value)
        return value

    results = await asyncio.gather(
        *(
            operations.run("c", "Update", lambda value=value: work(value), detail=value)  # type: ignore[misc]
            for value in ("a", "b", "a")
        )
    )
    assert results == ["a", "b", "a"]
    assert done == ["a", "b"], "the same again is joined"
