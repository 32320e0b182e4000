"""JSON without the json module says the same as the json module."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtimeshim import json_text

REPOSITORY = Path(__file__).resolve().parents[2]
TEXTS = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
)  # fmt: skip


@given(VALUES)
def test_what_is_written_is_read_by_either(value: object) -> None:
    assert json_text.dumps(value) == json.dumps(value, separators=(",", ":"))
    assert json_text.loads(json_text.dumps(value)) == value
    assert json_text.loads(json.dumps(value, indent=1, ensure_ascii=False).encode()) == value


@given(TEXTS)
def test_a_quoted_string_is_one(text: str) -> None:
    assert json_text.quote(text) == json.dumps(text, ensure_ascii=False)


@given(st.text('{}[]",:0123456789.eE+-truefalsn \n\\u', max_size=12))
@example('"\n')
def test_what_is_refused_by_one_is_by_the_other(text: str) -> None:
    try:
        wanted = json.loads(text)
    except ValueError as err:
        with pytest.raises(ValueError) as raised:
            json_text.loads(text)
        assert str(raised.value).partition(":")[0] == str(err).partition(":")[0]
    else:
        assert json_text.loads(text) == wanted


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}'])
def test_numbers_that_are_none_of_json_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        json_text.loads(text)


def test_what_has_no_json_is_refused() -> None:
    with pytest.raises(TypeError, match="a set cannot be written as JSON"):
        json_text.dumps({"a": {1}})
    with pytest.raises(ValueError):
        json_text.dumps(float("nan"))


@pytest.mark.parametrize("text", ["", "{", '{"a"', '"\\x"', "[1,]", "nul", '"a'])
def test_an_error_is_one_where_json_has_not_been_imported(text: str) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from runtimeshim import json_text\n"
        "assert 'json' not in sys.modules\n"
        "try: json_text.loads(sys.argv[2])\n"
        "except ValueError as err: print(err)"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(REPOSITORY), text]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    with pytest.raises(ValueError) as wanted:
        json.loads(text)
    assert done.stdout.strip() == str(wanted.value)
