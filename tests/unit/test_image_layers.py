"""What a failed worker means: a wrong archive is one thing, a machine in trouble another."""

from __future__ import annotations

import errno

import pytest

from imageservice import layer_tree
from imageservice.compression import CompressionError
from imageservice.errors import BadContentError
from imageservice.fetch import WantedBlob
from imageservice.manifest import Descriptor
from imageservice.tar import TarError
from imageservice.unpacking import worker_failed
from runtimeshim.client import WorkerError

DIGEST = "sha256:" + "1" * 64
WANTED = WantedBlob("host/app:1", Descriptor("layer", DIGEST, 5))


@pytest.mark.parametrize(
    ("kind", "number", "bad"),
    [
        ("TarError", None, True),
        ("CoveredError", None, True),
        ("CompressionError", None, True),
        ("CoveredError", None, True),
        ("OSError", errno.ENAMETOOLONG, True),
        ("OSError", errno.ENOSPC, False),
        ("OSError", errno.EIO, False),
        ("Died", None, False),
        ("MemoryError", None, False),
    ],
)
def test_only_a_wrong_archive_is_bad_content(kind: str, number: int | None, bad: bool) -> None:
    error = worker_failed(WANTED, WorkerError(kind, "what happened", number))
    assert isinstance(error, BadContentError) is bad
    assert str(error).startswith(f"layer {DIGEST} of host/app:1: what happened")


def test_every_error_of_an_archive_is_known_by_its_name() -> None:
    kinds = [TarError, CompressionError, *subclasses(TarError), *subclasses(CompressionError)]
    for kind in kinds:
        error = worker_failed(WANTED, WorkerError(kind.__name__, "what happened", None))
        assert isinstance(error, BadContentError), kind
    assert layer_tree.CoveredError in kinds


def subclasses(kind: type[Exception]) -> list[type[Exception]]:
    return [each for child in kind.__subclasses__() for each in (child, *subclasses(child))]
