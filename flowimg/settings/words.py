"""Words as people type them: the type of a setting decides how its word is read, in a file and on the command line.

    text              as it is typed: no, 012, 1_0, 1:30, 2024-01-01 and, where there must be a text, none
    a number          decimal, whatever zeros it begins with: 010 is 10. Also 1_000, 1e-3, 0x1F, 0o17, 0b11 and .inf
    a switch          true, yes, on; false, no, off
    nothing           null, ~, none or an empty value, where a setting may be null
    a name or number  as it is typed, even none: a class may be called that, and only the run knows its classes

YAML 1.1 would decide by the word: 010 is 8 there, 1:30 is 90, and no is false. A word in quotes is text. What the type
of its setting does not allow is refused by the checks of that type.
"""

import re
from collections.abc import Callable
from types import NoneType
from typing import Any, get_args

from flowimg.settings.base import Settings

NULL = ("", "~", "null", "Null", "NULL")
"""YAML's words for nothing."""
NOTHING = (*NULL, "none", "None")
SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
WHOLE = re.compile(r"[-+]?\d+(_\d+)*", re.ASCII)
PREFIXED = re.compile(r"[-+]?0(x[\da-f]+|o[0-7]+|b[01]+)", re.ASCII | re.IGNORECASE)
DECIMAL = re.compile(r"[-+]?(\d+(_\d+)*\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
ENDLESS = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}
LONGEST = 400
"""Digits of a number at most."""

Leaf = Callable[[str, list[Any], bool], Any]
"""(text, what its setting allows, whether it is an item of a list) -> the value that stands for it."""


class Word(str):
    """A word that was typed without quotes and is not read yet."""


class Quoted(str):
    """A text that would be read as something else without quotes."""


def read_words(values: Any, model: type[Settings]) -> Any:
    """Plain values for a model, with each word read as the type of its setting says."""
    return _replaced(values, model, lambda text, *how: _read(text, *how) if isinstance(text, Word) else text)


def quoted(values: Any, model: type[Settings]) -> Any:
    """The plain values of a model, with each text marked that would not be read back."""
    return _replaced(values, model, lambda text, *how: text if _read(text, *how) == text else Quoted(text))


def _replaced(value: Any, annotation: Any, leaf: Leaf, item: bool = False) -> Any:
    """The same plain values with another one for each text; `annotation` is the type of the setting that holds them."""
    if isinstance(value, str):
        return leaf(value, allowed_by(annotation), item)
    if isinstance(value, list):
        return [_replaced(one, annotation, leaf, item=True) for one in value]
    if isinstance(value, dict) and (group := _group(annotation, value)):
        fields = group.model_fields
        known = {key: fields[key].annotation for key in value if key in fields}
        return {key: _replaced(one, known[key], leaf) if key in known else one for key, one in value.items()}
    return value


def _group(annotation: Any, values: dict[str, Any]) -> type[Settings] | None:
    """The settings that a group of values is for: where there are several kinds, those of its kind."""
    models = [one for one in (annotation, *get_args(annotation)) if isinstance(one, type) and issubclass(one, Settings)]
    kinds = [one for one in models if len(models) == 1 or one.model_fields["kind"].default == values.get("kind")]
    return kinds[0] if kinds else None


def allowed_by(annotation: Any) -> list[Any]:
    """What a type allows, without limits: plain types and values of literals; of a list, those of its items."""
    inner = get_args(annotation)
    return [one for part in inner for one in allowed_by(part)] if inner else [annotation]


def _read(word: str, allowed: list[Any], item: bool) -> Any:
    """A word as one of the types that its setting allows; else as YAML 1.2 reads it, for an error that shows it."""
    text, number = str(word), _number(word)
    if int in allowed and str in allowed and word:
        return text
    if NoneType in allowed and word in NOTHING:
        return None
    if word in allowed:
        return text
    if bool in allowed and word.lower() in SWITCHES:
        return SWITCHES[word.lower()]
    if number is not None and (int in allowed or float in allowed):
        return number
    if str in allowed and word not in (("", "~") if item else NULL):
        return text
    return plain(text)


def plain(text: str) -> Any:
    """What a word is by itself, as YAML 1.2 has it: nothing, true or false, a number or text."""
    number = _number(text)
    if text in NULL or number is not None:
        return number
    return SWITCHES[text.lower()] if text.lower() in ("true", "false") else str(text)


def _number(text: str) -> int | float | None:
    """The number that a word is; None for any other."""
    if len(text) > LONGEST:
        return None
    if WHOLE.fullmatch(text):
        return int(text)
    if PREFIXED.fullmatch(text):
        return int(text, 0)
    return float(ENDLESS.get(text.lower(), text)) if DECIMAL.fullmatch(text) or text.lower() in ENDLESS else None
