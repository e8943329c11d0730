"""A turn's settings as plain values: one frozen dataclass goes out, and comes back whole.

A field is an int, float, bool or non-empty text, or a frozen dataclass of such, whose fields stand
among the others. ``max_grad_norm`` travels as ``max-grad-norm``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

KIND = "turn"
Plain = bool | int | float | str


def to_config(turn: Any) -> dict[str, Plain]:
    """Return a turn's values by key, and its kind.

    Raises TypeError for a value that is not its field's, ValueError for a key that comes twice.
    """
    config: dict[str, Plain] = {KIND: type(turn).__name__}
    for key, kind, value in _values(turn):
        if key in config:
            raise ValueError(f"{type(turn).__name__}: two fields are called {key!r}")
        config[key] = _checked(type(turn).__name__, key, kind, value)
    return config


def from_config(config: Mapping[str, Any], kinds: Sequence[type]) -> Any:
    """Return the turn that :func:`to_config` took apart; it is one of ``kinds``.

    Raises ValueError where it is of another kind, or a field is missing or of another type.
    """
    by_name = {kind.__name__: kind for kind in kinds}
    name = config.get(KIND)
    if not isinstance(name, str) or name not in by_name:
        raise ValueError(f"asked for a turn of kind {name!r}; known here: {', '.join(by_name)}")
    try:
        return _built(by_name[name], config)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _built(kind: Any, config: Mapping[str, Any]) -> Any:
    given = {}
    for name, key, own in _fields(kind):
        if is_dataclass(own):
            given[name] = _built(own, config)
        elif key not in config:
            raise ValueError(f"{kind.__name__}: the field {key!r} is missing")
        else:
            given[name] = _checked(kind.__name__, key, own, config[key])
    return kind(**given)


@cache
def _fields(kind: Any) -> tuple[tuple[str, str, Any], ...]:
    """Return name, key and type of each field; looking up the types takes a while."""
    hints = get_type_hints(kind)
    return tuple((f.name, f.name.replace("_", "-"), hints[f.name]) for f in fields(kind))


def _values(turn: Any) -> Iterator[tuple[str, Any, Any]]:
    turn_type: Any = type(turn)  # mypy does not take a type for hashable
    for name, key, kind in _fields(turn_type):
        value = getattr(turn, name)
        if is_dataclass(kind):
            yield from _values(value)
        else:
            yield key, kind, value


def _checked(turn: str, key: str, kind: Any, value: Any) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind or value == "":  # Flower cannot count the bytes of an empty text
        raise TypeError(f"{turn}: {key}={value!r}: must be {kind.__name__} and not empty")
    return value
