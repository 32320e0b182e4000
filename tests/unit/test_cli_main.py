"""The command line as a whole: help, mistakes, exit codes, and what is imported when."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from criserver import cli
from criserver.cli.errors import start_exit_code

CLIENT_VERBS = sorted(cli.VERBS.keys() - cli.PROGRAMS.keys())


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    output = capsys.readouterr().out
    for name, verb in cli.VERBS.items():
        assert f"  {name:<12} {verb.help}\n" in output


@pytest.mark.parametrize("verb", CLIENT_VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, "--help"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    summary = cli.verb_module(verb).__doc__.splitlines()[0]
    assert output.startswith(f"usage: criserver {verb}") and summary in output


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["nope"], 2, "criserver: unknown command 'nope'"),
        (["ps", "--nope"], 2, "criserver ps: unrecognized arguments: --nope; see `criserver ps"),
        (["stop"], 2, "criserver stop: the following arguments are required: CONTAINER"),
        (["rm"], 2, "criserver rm: name containers, or give --all"),
        (["rm", "--all"], 2, "criserver rm: --all kills what runs"),
        (["rm", "--all", "-f", "x"], 2, "criserver rm: name containers, or give --all"),
        (["run"], 125, "criserver run: the following arguments are required: IMAGE;"),
        (["run", "-d", "--rm", "x"], 125, "criserver run: --rm needs this program to wait"),
        (["exec", "x"], 125, "criserver exec: the following arguments are required: COMMAND"),
        (["--endpoint", "tcp://1:2", "ps"], 1, "criserver ps: the endpoint must be unix:///PATH"),
        (["image", "import", "/nonexistent"], 1, "criserver image: cannot import /nonexistent"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    arguments: list[str], exit_code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = cli.main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    output = capsys.readouterr()
    assert (code, output.out) == (exit_code, "")
    assert output.err.startswith(message) and output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [(["ps"], 1), (["images"], 1), (["run", "x"], 125), (["exec", "x", "y"], 125), (["info"], 1)],
)
def test_without_a_daemon_it_says_where_it_looked_and_what_to_do(
    arguments: list[str], exit_code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = f"unix://{tmp_path}/no.sock"
    assert cli.main(["--endpoint", endpoint, *arguments]) == exit_code
    line = capsys.readouterr().err
    assert f"no runtime at {endpoint}: start it with `criserver serve`" in line
    assert line.count("\n") == 1


def test_the_endpoint_is_also_taken_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CRISERVER_ENDPOINT", f"{tmp_path}/env.sock")
    assert cli.main(["ps"]) == 1
    assert f"unix://{tmp_path}/env.sock" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["config", "default"], ["serve", "--nope"]])
def test_what_starts_the_daemon_does_not_import_grpc_first(arguments: list[str]) -> None:
    script = (
        "import sys, types\n"
        "sys.modules['criserver.daemon'] = types.SimpleNamespace(main=lambda arguments: 0)\n"
        "from criserver.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert 'grpc' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("message", "exit_code"),
    [
        ("execve: /x: No such file or directory", 127),
        ('exec: "x": executable file not found in $PATH', 127),
        ("execve: /x: Permission denied", 126),
        ("execve: /x: Exec format error", 126),
        ("no space left on device", 125),
    ],
)
def test_the_exit_code_tells_why_a_command_did_not_start(message: str, exit_code: int) -> None:
    assert start_exit_code(message) == exit_code
