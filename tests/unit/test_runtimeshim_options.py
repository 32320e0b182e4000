"""Command lines as Go's flag package reads them."""

from __future__ import annotations

import pytest

from runtimeshim.cli.options import Flag, UsageError, exactly, parse, usage

FLAGS = (
    Flag("bundle b", "path", "the bundle"),
    Flag("detach d", "", "do not wait"),
    Flag("env e", "list", "more environment"),
    Flag("preserve-fds", "number", "how many"),
)


@pytest.mark.parametrize(
    "argv",
    [["-b", "x"], ["--b", "x"], ["-bundle", "x"], ["--bundle", "x"], ["--bundle=x"], ["-b=x"]],
)
def test_dashes_and_equals_signs_are_all_the_same(argv: list[str]) -> None:
    options, arguments = parse(FLAGS, [*argv, "id"])
    assert (options.text("bundle"), arguments) == ("x", ["id"])


def test_flags_that_were_not_given_have_zero_values() -> None:
    options, _ = parse(FLAGS, [])
    assert (options.text("bundle", "."), options.flag("detach")) == (".", False)
    assert (options.number("preserve-fds"), options.texts("env")) == (None, [])


@pytest.mark.parametrize(
    ("given", "value"), [("-d", True), ("--detach=true", True), ("-d=f", False)]
)
def test_booleans(given: str, value: bool) -> None:
    assert parse(FLAGS, [given])[0].flag("detach") is value


def test_lists_are_gathered_and_others_are_replaced() -> None:
    options, _ = parse(FLAGS, ["-e", "A=1", "-b", "x", "--env=B=2", "-b", "y"])
    assert (options.texts("env"), options.text("bundle")) == (["A=1", "B=2"], "y")


def test_flags_may_follow_arguments_up_to_the_stop() -> None:
    assert parse(FLAGS, ["id", "-d"])[1] == ["id"]
    options, arguments = parse(FLAGS, ["-d", "id", "-d", "--", "-x"], stop_at=1)
    assert (options.flag("detach"), arguments) == (True, ["id", "-d", "--", "-x"])
    assert parse(FLAGS, ["--", "-d"])[1] == ["-d"]
    assert parse(FLAGS, ["-"])[1] == ["-"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-x"], "not defined: -x"),
        (["--bundle"], "needs an argument: -bundle"),
        (["--preserve-fds", "many"], "not a number"),
        (["-d=maybe"], "invalid boolean"),
    ],
)
def test_what_makes_no_sense_is_said(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(FLAGS, argv)


def test_arguments_are_counted() -> None:
    assert exactly(["a"], "ID") == ["a"]
    for wrong in ([], ["a", "b"]):
        with pytest.raises(UsageError, match="ID"):
            exactly(wrong, "ID")


def test_the_help_has_a_line_for_each_flag() -> None:
    lines = usage("program verb", "ID", "Do it.", FLAGS).splitlines()
    assert lines[:4] == ["usage: program verb ID", "", "Do it.", ""]
    assert lines[5].split() == ["--bundle,", "-b", "PATH", "the", "bundle"]
    assert len(lines) == 5 + len(FLAGS)
