"""The SELinux label of layers and writable layers on disk, which any kernel keeps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from criserver import storage_labels
from runtimeshim.linux import selinux


def label(path: Path) -> str:
    return os.getxattr(path, selinux.ATTRIBUTE).rstrip(b"\0").decode()


async def test_all_that_is_there_is_labelled_once(tmp_path: Path) -> None:
    files = [tmp_path / name / "1/fs/file" for name in storage_labels.DIRECTORIES]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    await storage_labels.apply(tmp_path)
    assert {label(file) for file in files} == {storage_labels.LABEL}
    later = files[0].with_name("later")
    later.touch()
    await storage_labels.apply(tmp_path)
    assert selinux.ATTRIBUTE not in os.listxattr(later), "a start does not walk all layers"


async def test_what_cannot_be_labelled_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await storage_labels.apply(tmp_path)
    for name in storage_labels.DIRECTORIES:
        assert f"{tmp_path / name} cannot have the SELinux label" in caplog.text
