"""Overlays as kernels before 6.7 take them: as one string, which has to fit in a page."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtimeshim.linux import mounts, overlay
from tests.integration import leaks

ODD_NAMES = ("a:b", "c,d", "e\\f", "g h", "x" * 250)


@pytest.fixture
def old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this kernel refuse what came with 6.7, by the error that older ones give."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "fsconfig(CREATE)")

    monkeypatch.setattr(overlay, "_new", refuse)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "target"
    made.mkdir()
    yield made
    if os.path.ismount(made):
        mounts.umount(str(made))
    assert not [mount for mount in leaks.mounts() if str(tmp_path) in mount]


def layers(directory: Path, names: list[str]) -> list[str]:
    made = [directory / "layers" / name for name in names]
    for number, layer in enumerate(made):
        layer.mkdir(parents=True)
        (layer / f"{number}").write_text(str(number))
        (layer / "same").write_text(str(number))
    return [str(layer) for layer in made]


@pytest.mark.usefixtures("old_kernel")
def test_the_layers_of_the_largest_image_fit(tmp_path: Path, target: Path) -> None:
    lowerdirs = layers(tmp_path, [f"{number}-{'x' * 100}" for number in range(500)])
    before = Path.cwd()
    overlay.mount(lowerdirs, str(target))
    assert {path.name for path in target.iterdir()} == {*map(str, range(500)), "same"}
    assert (target / "same").read_text() == "0"
    assert Path.cwd() == before


@pytest.mark.usefixtures("old_kernel")
def test_no_name_of_a_directory_is_taken_apart(tmp_path: Path, target: Path) -> None:
    lowerdirs = layers(tmp_path, list(ODD_NAMES))
    upper, work = tmp_path / "u,p:per", tmp_path / "wo,r:k"
    upper.mkdir()
    work.mkdir()
    overlay.mount(lowerdirs, str(target), overlay.Writable(str(upper), str(work), volatile=True))
    (target / "new").write_text("")
    assert (upper / "new").exists()
    assert (target / "same").read_text() == "0"


@pytest.mark.usefixtures("old_kernel")
def test_a_detached_mount_leaves_nothing_at_the_place_that_it_took(
    tmp_path: Path, target: Path
) -> None:
    lowerdirs = layers(tmp_path, ["top", "base"])
    attributes = mounts.MOUNT_ATTR_RDONLY | mounts.MOUNT_ATTR_NOATIME | mounts.MOUNT_ATTR_NOEXEC
    fd = overlay.detached(lowerdirs, lambda: str(target), source="image", attributes=attributes)
    assert not os.path.ismount(target)
    mounts.move_mount(fd, mounts.AT_FDCWD, str(target))
    os.close(fd)
    (line,) = [
        each for each in Path("/proc/mounts").read_text().splitlines() if str(target) in each
    ]
    source, _, kind, options = line.split()[:4]
    assert (source, kind) == ("image", "overlay")
    assert {"ro", "noatime", "noexec"} <= set(options.split(","))


@pytest.mark.usefixtures("old_kernel")
def test_what_both_ways_refuse_is_the_first_refusal(tmp_path: Path, target: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    with pytest.raises(OSError, match="fsconfig"):  # the upper directory as its own work directory
        overlay.mount(
            layers(tmp_path, ["a"]), str(target), overlay.Writable(str(upper), str(upper))
        )


@pytest.mark.usefixtures("old_kernel")
def test_a_layer_that_is_not_there_is_named(tmp_path: Path, target: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        overlay.mount([str(tmp_path / "absent")], str(target))
