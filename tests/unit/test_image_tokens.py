"""Tokens are kept for those who got them, as long as they last."""

from __future__ import annotations

from dataclasses import replace

import pytest

from imageservice.auth import ANONYMOUS, Credentials
from imageservice.authorization import DEFAULT_LIFETIME, MAX_TOKENS, TokenKey, Tokens, _lifetime

KEY = TokenKey("https://host/v2", "https://auth/token", "reg", "repository:app:pull", ANONYMOUS)
PLACE = ("https://host/v2", "app", ANONYMOUS)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(clock: Clock) -> Tokens:
    return Tokens(clock)


def test_a_token_is_used_until_shortly_before_its_end(tokens: Tokens, clock: Clock) -> None:
    tokens.put(KEY, "t", 60.0)
    clock.now += 54
    assert tokens.get(KEY) == "t"
    clock.now += 2
    assert tokens.get(KEY) is None


def test_a_token_that_hardly_lasts_is_used_all_the_same(tokens: Tokens, clock: Clock) -> None:
    tokens.put(KEY, "t", 2.0)
    assert tokens.get(KEY) == "t"
    clock.now += 1.5
    assert tokens.get(KEY) is None


@pytest.mark.parametrize(
    "other",
    [
        {"host": "https://other/v2"},
        {"realm": "https://other/token"},
        {"service": "other"},
        {"scope": "repository:other:pull"},
        {"credentials": Credentials("me", "secret")},
    ],
)
def test_a_token_is_for_one_of_each_only(tokens: Tokens, other: dict[str, object]) -> None:
    tokens.put(KEY, "t", 60.0)
    assert tokens.get(replace(KEY, **other)) is None


def test_a_password_is_part_of_who_asks(tokens: Tokens) -> None:
    tokens.put(replace(KEY, credentials=Credentials("me", "right")), "t", 60.0)
    assert tokens.get(replace(KEY, credentials=Credentials("me", "wrong"))) is None


def test_a_refused_token_is_dropped_unless_there_is_a_newer_one(tokens: Tokens) -> None:
    tokens.put(KEY, "old", 60.0)
    tokens.put(KEY, "new", 60.0)
    tokens.forget(KEY, "old")
    assert tokens.get(KEY) == "new"
    tokens.forget(KEY, "new")
    assert tokens.get(KEY) is None
    tokens.forget(KEY, "new")


def test_a_repository_is_asked_with_the_token_that_it_wanted_last(tokens: Tokens) -> None:
    assert tokens.noted(PLACE) is None
    tokens.note(PLACE, KEY)
    assert tokens.noted(PLACE) is None
    tokens.put(KEY, "t", 60.0)
    assert tokens.noted(PLACE) == "t"
    assert tokens.noted((PLACE[0], PLACE[1], Credentials("me", "secret"))) is None


def test_what_is_kept_is_bounded(tokens: Tokens, clock: Clock) -> None:
    tokens.put(KEY, "expires", 1.0)
    clock.now += 10
    for number in range(MAX_TOKENS + 10):
        key = replace(KEY, scope=str(number))
        tokens.put(key, "t", 60.0)
        tokens.note(("base", str(number), ANONYMOUS), key)
    assert tokens.noted(("base", "5", ANONYMOUS)) is None
    assert tokens.noted(("base", str(MAX_TOKENS), ANONYMOUS)) == "t"
    assert len(tokens._tokens) <= MAX_TOKENS
    assert len(tokens._asked) <= MAX_TOKENS


@pytest.mark.parametrize("value", [None, "60", 0, -1, True, [], float("nan")])
def test_a_lifetime_that_is_none_is_the_default(value: object) -> None:
    assert _lifetime(value) == DEFAULT_LIFETIME
