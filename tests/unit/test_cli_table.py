"""Tables, ages and sizes, and what the lists of containers and images say."""

from __future__ import annotations

import pytest

from api.cri import api_pb2 as cri
from criserver.cli.table import age, format_table, short_id, size
from criserver.cli.verbs import images, ps

SECOND = 10**9


def test_columns_are_aligned_without_trailing_blanks() -> None:
    table = format_table(("A", "LONG"), [("xxx", "y"), ("", "")])
    assert table == "A    LONG\nxxx  y\n\n"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-5, "less than a second"),
        (0, "less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "1 minute"),
        (3600 * 5, "5 hours"),
        (86400 * 2, "2 days"),
        (86400 * 800, "2 years"),
    ],
)
def test_age(seconds: int, expected: str) -> None:
    assert age(100 * SECOND, (100 + seconds) * SECOND) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1kB"),
        (4_261_574, "4.26MB"),
        (999_600, "1MB"),
        (123_456_789, "123MB"),
        (2 * 10**9, "2GB"),
        (5 * 10**12, "5TB"),
    ],
)
def test_size(count: int, expected: str) -> None:
    assert size(count) == expected


def test_short_ids() -> None:
    assert short_id("sha256:" + "ab" * 32) == "abababababab" + "a"
    assert short_id("cd" * 32) == "cdcdcdcdcdcd" + "c"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"state": cri.CONTAINER_CREATED}, "Created"),
        ({"state": cri.CONTAINER_UNKNOWN}, "Unknown"),
        ({"state": cri.CONTAINER_EXITED, "exit_code": 3, "reason": "Error"}, "Exited (3) "),
        ({"state": cri.CONTAINER_EXITED, "reason": "Completed"}, "Exited (0) "),
        (
            {"state": cri.CONTAINER_EXITED, "exit_code": 137, "reason": "OOMKilled"},
            "Exited (137, OOMKilled) ",
        ),
        ({"state": cri.CONTAINER_RUNNING}, "Up "),
    ],
)
def test_states_in_words(status: dict[str, object], expected: str) -> None:
    assert ps.describe(cri.ContainerStatus(**status)).startswith(expected)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"repo_tags": ["h:5/a/b:1", "c:2"]}, [("h:5/a/b", "1"), ("c", "2")]),
        ({"repo_digests": ["h/a@sha256:1"]}, [("h/a", "<none>")]),
        ({}, [("<none>", "<none>")]),
    ],
)
def test_an_image_has_a_row_for_each_name(
    names: dict[str, list[str]], expected: list[tuple[str, str]]
) -> None:
    rows = images.rows(cri.Image(id="sha256:" + "1" * 64, size=1000, **names))
    assert rows == [(*name, "1" * 13, "1kB") for name in expected]
