"""An exec has the container's identity and confinement, and its own command and terminal."""

from __future__ import annotations

import copy

import pytest

from api.errors import InvalidArgumentError
from criserver.exec_process import exec_process

CONTAINER = {
    "args": ["/bin/server"],
    "terminal": True,
    "consoleSize": {"width": 1, "height": 2},
    "cwd": "/srv",
    "env": ["PATH=/bin", "A=1"],
    "user": {"uid": 1000, "gid": 1000, "additionalGids": [5]},
    "capabilities": {"bounding": ["CAP_CHOWN"]},
    "noNewPrivileges": True,
    "apparmorProfile": "p",
    "selinuxLabel": "l",
    "oomScoreAdj": 7,
    "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
}
INHERITED = sorted(CONTAINER.keys() - {"args", "terminal", "consoleSize"})


@pytest.mark.parametrize("key", INHERITED)
def test_identity_and_confinement_are_the_containers(key: str) -> None:
    assert exec_process(CONTAINER, ["ls"], terminal=False)[key] == CONTAINER[key]


def test_command_and_terminal_are_the_callers_and_the_console_size_is_nobodys() -> None:
    process = exec_process(CONTAINER, ["ls", "-l"], terminal=False)
    assert (process["args"], process["terminal"]) == (["ls", "-l"], False)
    assert "consoleSize" not in process


def test_the_containers_process_is_not_changed() -> None:
    before = copy.deepcopy(CONTAINER)
    process = exec_process(CONTAINER, ["ls"], terminal=True)
    process["user"]["additionalGids"].append(6)
    assert before == CONTAINER


@pytest.mark.parametrize(
    ("env", "terminal", "expected"),
    [
        (["A=1"], True, ["A=1", "TERM=xterm"]),
        (["TERM=vt100"], True, ["TERM=vt100"]),
        (["A=1"], False, ["A=1"]),
    ],
)
def test_a_terminal_has_a_type(env: list[str], terminal: bool, expected: list[str]) -> None:
    container = {**CONTAINER, "env": env}
    assert exec_process(container, ["sh"], terminal=terminal)["env"] == expected


@pytest.mark.parametrize("args", [[], [""], ["a", "b\0c"]])
def test_a_command_that_cannot_be_one_is_refused(args: list[str]) -> None:
    with pytest.raises(InvalidArgumentError):
        exec_process(CONTAINER, args, terminal=False)
