"""JSON by the C functions of the standard library, without its json module, which imports re."""

from __future__ import annotations

from _json import encode_basestring, encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_SPACE = " \t\n\r"


class _Context:
    """What make_scanner asks for, as a json.JSONDecoder has it; array_hook since Python 3.15."""

    strict = True
    object_hook = object_pairs_hook = array_hook = None
    parse_float, parse_int = float, int

    @staticmethod
    def parse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number of JSON")


def _refuse(value: object) -> NoReturn:
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


_scan = make_scanner(_Context)  # type: ignore[arg-type]  # any object with these attributes will do
# no memory of what is being encoded, default, strings, indent, separators, sort, skip, NaN
_encode = make_encoder(None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, False)


def dumps(value: object) -> str:
    """Return `value` as JSON, in ASCII and without spaces."""
    return "".join(_encode(value, 0))


def quote(text: str) -> str:
    """Return a string as JSON, with the characters that it has."""
    return encode_basestring(text)


def loads(content: bytes | str) -> Any:
    """Return what a JSON text, in UTF-8, stands for. Raises ValueError."""
    text = content.decode() if isinstance(content, bytes) else content
    try:
        value, end = _scan(text, len(text) - len(text.lstrip(_SPACE)))
    except (StopIteration, SystemError):  # SystemError: it has its exceptions from json.decoder
        raise _error(text) from None
    if text[end:].strip(_SPACE):
        raise _error(text)
    return value


def _error(text: str) -> ValueError:
    """Return what is wrong with a text, as the json module tells it."""
    import json

    try:
        json.loads(text)
    except ValueError as err:
        return err
    return ValueError("this is JSON only to Python's json module")
