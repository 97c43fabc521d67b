"""Sentences for values that a configuration refuses: the field, the value, and the values that it accepts."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from twinsep.config import mixers

#: The network of a configuration that names none.
DEFAULT_NETWORK = "unet"
#: The networks, by which pydantic distinguishes the classes of ``model``.
TAGS = ("unet", "flat", "spectrogram-unet", "package")
_NOUNS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
_LIMITS = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}


def describe_first(error: ValidationError, root: type, values: Mapping[str, Any]) -> str:
    """Return a sentence on the first of ``values`` that the configuration class ``root`` refuses."""
    first = error.errors()[0]
    if first["type"] == "union_tag_invalid":
        return f"model.network: {first['ctx']['tag']!r} is not one of {', '.join(TAGS)}"
    # Pydantic names the chosen network between "model" and its field.
    location: list[Any] = [*first["loc"]]
    if location[:1] == ["model"] and location[1:2] and location[1] in TAGS:
        del location[1]
    if first["type"] == "value_error":
        # One of the whole configuration, such as a band table of the loss at the model's n_fft, has no place.
        return ": ".join(filter(None, [".".join(map(str, location)), str(first["ctx"]["error"])]))
    kind: Any = root
    value: Any = values
    place = ""
    for part in location:
        where, parts = f"{place}.{part}".removeprefix("."), _parts(kind, value)
        if part not in parts:
            if first["type"] in ("unexpected_keyword_argument", "invalid_key"):
                similar = difflib.get_close_matches(str(part), parts, 1)
                return f"{where}: no such field; " + (
                    f"did you mean {similar[0]}?" if similar else f"known: {', '.join(parts)}"
                )
            break
        if isinstance(value, Mapping) and part not in value:
            return f"{where}: missing; set it to {_describe(parts[part])}"
        kind, value, place = parts[part], value[part], where
    return f"{place}: {reprlib.repr(value)} is not {_describe(kind)}"


def _parts(kind: Any, value: Any) -> dict[Any, Any]:
    """Type of each field of a section, or of each entry that ``value`` has as a list or mapping; else empty."""
    kind = _split(kind)[0]
    if get_origin(kind) is UnionType and isinstance(value, Mapping):
        kind = _networks(kind)[value.get("network", DEFAULT_NETWORK)]
    if kind is mixers.Mixer and isinstance(value, Mapping):
        kind = mixers.MIXERS[value["kind"]]
    if is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        return {field.name: hints[field.name] for field in fields(kind)}
    if get_origin(kind) is dict and isinstance(value, Mapping):
        return {key: get_args(kind)[1] for key in value if isinstance(key, str)}
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return dict.fromkeys(range(len(value)), get_args(kind)[0])
    return {}


def _networks(kind: Any) -> dict[str, Any]:
    """The classes of a union by the network that each configures; empty for another type."""
    kind = _split(kind)[0]
    classes = get_args(kind) if get_origin(kind) is UnionType else ()
    return {get_args(get_type_hints(each)["network"])[0]: each for each in classes}


def _describe(kind: Any) -> str:
    """Describe the values of a type, such as "a whole number of at least 1"."""
    base, *extras = _split(kind)
    if networks := _networks(kind):
        base = networks[DEFAULT_NETWORK]
    arguments = get_args(base)
    if is_dataclass(base):
        return f"a mapping with fields such as {fields(base)[0].name}"
    if get_origin(base) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if get_origin(base) is dict:
        return f"a mapping of names, each value {_describe(arguments[1])}"
    if get_origin(base) is tuple:
        count = "" if arguments[-1] is Ellipsis else f" of {len(arguments)}"
        return f"a list{count}, each entry {_describe(arguments[0])}"
    bounds = [bound for extra in extras if isinstance(extra, FieldInfo) for bound in extra.metadata]
    limits = [
        f"{words} {getattr(bound, name):g}"
        for bound in bounds
        for name, words in _LIMITS.items()
        if hasattr(bound, name)
    ]
    return " ".join(filter(None, [_NOUNS[base], " and ".join(limits)]))


def _split(kind: Any) -> tuple[Any, ...]:
    """The type, and what ``Annotated`` adds to it."""
    return get_args(kind) if get_origin(kind) is Annotated else (kind,)
