"""What the kernel says of AppArmor's profiles, from files in its form."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.errors import InvalidArgumentError
from criserver import apparmor


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "profiles"
    file.write_text("criserver-default (enforce)\n/usr/bin/man (complain)\na (b) (kill)\n")
    monkeypatch.setattr(apparmor, "PROFILES", file)
    return file


def test_the_loaded_profiles(profiles: Path) -> None:
    assert apparmor.loaded() == {"criserver-default", "/usr/bin/man", "a (b)"}
    apparmor.check_loaded("/usr/bin/man")


def test_a_profile_that_is_not_loaded_is_refused(profiles: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="'criserver' is not loaded"):
        apparmor.check_loaded("criserver")


def test_a_kernel_that_does_not_list_them_is_an_error(profiles: Path) -> None:
    profiles.unlink()
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        apparmor.check_loaded("criserver-default")


@pytest.mark.parametrize(("content", "enabled"), [("Y\n", True), ("N\n", False), (None, False)])
def test_whether_it_is_enabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, enabled: bool
) -> None:
    monkeypatch.setattr(apparmor, "ENABLED", tmp_path / "enabled")
    if content is not None:
        (tmp_path / "enabled").write_text(content)
    assert apparmor.is_enabled() is enabled
