"""A container's bundle goes at once where that takes a few calls, and as a whole in any case."""

from __future__ import annotations

from pathlib import Path

from criserver.bundle import remove_bundle, remove_flat_bundle, write_bundle


def test_a_bundle_as_the_executor_leaves_it_goes_at_once(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    write_bundle(bundle, {})
    (bundle / "exit.json").write_text("{}")
    assert remove_flat_bundle(bundle)
    assert not bundle.exists()


def test_what_a_bundle_never_was_is_gone(tmp_path: Path) -> None:
    assert remove_flat_bundle(tmp_path / "bundle")


def test_a_link_in_a_bundle_leads_nowhere(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    bundle = tmp_path / "bundle"
    write_bundle(bundle, {})
    (bundle / "link").symlink_to(kept)
    assert remove_flat_bundle(bundle)
    assert kept.exists()


def test_a_runtimes_state_is_left_to_who_may_wait(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    write_bundle(bundle, {})
    state = bundle / "runtime/container/state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    assert not remove_flat_bundle(bundle)
    assert state.exists()
    remove_bundle(bundle)
    assert not bundle.exists()
