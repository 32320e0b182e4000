"""`criserver completion`: what may come at the end of a line, without a daemon."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from criserver import cli


def complete(line: str, capsys: pytest.CaptureFixture[str], shell: str = "bash") -> list[str]:
    endpoint = "unix:///nonexistent"
    assert cli.main(["--endpoint", endpoint, "completion", "--line", line, shell]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return output.out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("criserver pu", ["pull"]),
        ("criserver po", ["pods", "port-forward"]),
        ("criserver --endpoint unix:///x pu", ["pull"]),
        ("criserver --v", ["--version"]),
        ("criserver logs --fo", ["--follow"]),
        ("criserver image im", ["import"]),
        ("criserver image export --o", ["--output"]),
        ("criserver exec ", []),  # a container's name, and nobody knows any
        ("criserver nope ", []),
        ("criserver serve ", []),
    ],
)
def test_what_may_come(line: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert complete(line, capsys) == expected


def test_every_verb_is_offered(capsys: pytest.CaptureFixture[str]) -> None:
    assert complete("criserver ", capsys, "zsh") == list(cli.VERBS)


def test_bash_runs_its_script(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    calls = tmp_path / "criserver"
    calls.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    calls.chmod(0o755)
    script = (
        f'PATH={tmp_path}:$PATH; COMP_LINE="criserver exec web" COMP_POINT=15;'
        ' _criserver; printf "%s|" "${COMPREPLY[@]}"'
    )
    from criserver.cli.verbs.completion import SCRIPTS

    result = subprocess.run(
        [bash, "-c", SCRIPTS["bash"] + script], capture_output=True, timeout=30, check=True
    )
    assert result.stdout == b"completion|--line|criserver exec |bash|"
