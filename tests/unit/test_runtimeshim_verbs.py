"""What the verbs of the OCI command line make of their flags, without any container."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtimeshim.cli import command
from runtimeshim.cli.options import UsageError, parse
from runtimeshim.cli.verbs import events, kill, update
from runtimeshim.cli.verbs import exec as exec_
from runtimeshim.cli.verbs import list as list_

OWN = {
    "args": ["sleep"],
    "cwd": "/own",
    "env": ["A=1"],
    "terminal": True,
    "user": {"uid": 5, "gid": 6, "additionalGids": [7]},
    "capabilities": {"bounding": ["CAP_KILL"]},
}


def process(argv: list[str], own: dict[str, Any] = OWN) -> dict[str, Any]:
    options, arguments = parse(exec_.FLAGS, argv, stop_at=1)
    return exec_.process_object(options, own, arguments[1:])


@pytest.mark.parametrize(
    ("given", "number"),
    [("9", 9), ("KILL", 9), ("SIGKILL", 9), ("term", 15), ("SIGRTMIN+3", 37), ("64", 64)],
)
def test_signals(given: str, number: int) -> None:
    assert kill.parse_signal(given) == number


@pytest.mark.parametrize("given", ["", "0", "65", "-9", "NONE", "SIG", "_IGN", "BLOCK", "RTMIN+x"])
def test_what_is_no_signal(given: str) -> None:
    with pytest.raises(UsageError):
        kill.parse_signal(given)


@pytest.mark.parametrize(
    ("given", "seconds"), [("500ms", 0.5), ("5s", 5), ("1.5m", 90), ("1h", 3600)]
)
def test_durations(given: str, seconds: float) -> None:
    assert events.seconds(given) == seconds


@pytest.mark.parametrize("given", ["", "5", "s", "0s", "-1s", "5 s", "1d"])
def test_what_is_no_duration(given: str) -> None:
    with pytest.raises(UsageError):
        events.seconds(given)


@pytest.mark.parametrize(
    ("given", "size"),
    [("4096", 4096), ("64m", 64 << 20), ("1G", 1 << 30), ("2kb", 2048), ("-1", -1)],
)
def test_sizes(given: str, size: int) -> None:
    assert update.size(given) == size


@pytest.mark.parametrize("given", ["", "m", "1x", "1mm", "1.5g"])
def test_what_is_no_size(given: str) -> None:
    with pytest.raises(UsageError):
        update.size(given)


def test_every_flag_of_update_has_its_field() -> None:
    for flags, value, expected in (
        (update.NUMBERS, "7", 7),
        (update.SIZES, "7k", 7168),
        (update.TEXTS, "0-1", "0-1"),
    ):
        for name, (section, field) in flags.items():
            options, _ = parse(update.FLAGS, [f"--{name}={value}"])
            assert update.resources(options) == {section: {field: expected}}
    for name in update.RDT:
        options, _ = parse(update.FLAGS, [f"--{name}=L3:0=f"])
        with pytest.raises(UsageError, match=f"--{name} is not supported"):
            update.resources(options)


def test_update_names_only_what_was_given() -> None:
    argv = ["--memory=64m", "--cpu-quota", "-1", "--cpuset-cpus=0-1", "--pids-limit=0"]
    options, _ = parse(update.FLAGS, argv)
    assert update.resources(options) == {
        "memory": {"limit": 64 << 20},
        "cpu": {"quota": -1, "cpus": "0-1"},
        "pids": {"limit": 0},
    }


def test_exec_begins_with_the_containers_process() -> None:
    made = process(["c", "ls", "-l"])
    assert made == OWN | {"args": ["ls", "-l"], "terminal": False}


def test_exec_adds_what_flags_say() -> None:
    argv = [
        "-t",
        "-e",
        "B=2",
        "-u",
        "1:2",
        "-g",
        "3",
        "--cwd=/x",
        "--apparmor=p",
        "-c",
        "CAP_FOWNER",
    ]
    made = process([*argv, "c", "ls"], OWN | {"capabilities": {"inheritable": ["CAP_KILL"]}})
    assert made["terminal"] is True
    assert (made["env"], made["cwd"]) == (["A=1", "B=2"], "/x")
    assert made["user"] == {"uid": 1, "gid": 2, "additionalGids": [7, 3]}
    assert made["apparmorProfile"] == "p"
    more = ["CAP_FOWNER"]
    assert made["capabilities"] == {
        "inheritable": ["CAP_KILL"],
        "bounding": more,
        "effective": more,
        "permitted": more,
        "ambient": more,
    }


@pytest.mark.parametrize("argv", [["c"], ["-u", "root", "c", "ls"], ["-g", "x", "c", "ls"]])
def test_exec_refuses_what_makes_no_sense(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        process(argv)


def test_exec_takes_a_process_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "process.json"
    path.write_text(json.dumps({"args": ["x"], "cwd": "/"}))
    assert process(["-p", str(path), "c"]) == {"args": ["x"], "cwd": "/"}


def test_the_table_of_list_has_the_width_of_its_cells() -> None:
    rows = [list_.COLUMNS, ["a" * 20, "1", "running", "/b", "now", "root"]]
    header, line = list_.table(rows)
    assert header.startswith("id" + " " * 21 + "pid" + " " * 9 + "status")
    assert line.startswith("a" * 20 + "   1" + " " * 11 + "running")
    assert line.endswith("root")


def test_every_verb_has_its_module() -> None:
    verbs = Path(exec_.__file__).parent
    assert {path.stem for path in verbs.glob("[!_]*.py")} == set(command.VERBS)
