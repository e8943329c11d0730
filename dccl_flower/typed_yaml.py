"""YAML in which text stays text until the field of a dataclass says what it means."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from math import inf, isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

T = TypeVar("T")
_TAG = "tag:yaml.org,2002:"
_PACKAGED = resources.files("dccl_flower.conf")
_BOOLS = dict.fromkeys(("true", "yes", "on", "1"), True)
_BOOLS |= dict.fromkeys(("false", "no", "off", "0"), False)


class ConfError(ValueError):
    """A mistake of the user's: one line that names the key, the value and what is allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))


@dataclass(frozen=True)
class Bound:
    """What a field's number may be; infinity and NaN lie beyond all ends."""

    above: float = -inf
    at_least: float = -inf
    below: float = inf
    at_most: float = inf

    def allows(self, value: float) -> bool:
        """Tell whether the number lies within."""
        return self.above < value < self.below and self.at_least <= value <= self.at_most

    def allowed(self, value: float) -> str:
        """Return in words what a number of this value's type may be."""
        ends = {end: limit for end, limit in asdict(self).items() if isfinite(limit)}
        if ends.keys() == {"above", "below"}:
            return f"must lie between {self.above} and {self.below}, both excluded"
        if ends.keys() == {"at_least", "at_most"}:
            return f"must lie between {self.at_least} and {self.at_most}"
        words = [f"{end.replace('_', ' ')} {limit}" for end, limit in ends.items()]
        if isinstance(value, float) and self.below == self.at_most == inf:
            words.append("finite")
        return f"must be {' and '.join(words)}"


def bound(default: Any = MISSING, **ends: float) -> Any:
    """Return a field for a number between ends: ``above``, ``at_least``, ``below``, ``at_most``."""
    return field(default=default, metadata={"bound": Bound(**ends)})


def share(default: float) -> Any:
    """Return a field for a number from 0 to 1."""
    return bound(default, at_least=0, at_most=1)


def path(*suffixes: str) -> Any:
    """Return a field for a path on this machine or None; with suffixes only such text is a path."""
    return field(default=None, metadata={"path": suffixes or ("",)})


def section(kind: type) -> Any:
    """Return a field for a section of its own."""
    return field(default_factory=kind)


class _Loader(yaml.SafeLoader):
    """Reads mappings, lists, texts and nulls, and refuses a key that stands twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own
        first: [(tag, form) for tag, form in known if tag in (f"{_TAG}null", f"{_TAG}merge")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012 - PyYAML's own
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (f"{_TAG}map", f"{_TAG}seq", f"{_TAG}str", f"{_TAG}null", None)
    }

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if first := lines.get(_name(key)):
                raise yaml.YAMLError(f"line {line}: {key.value} stands in line {first} already")
            lines[_name(key)] = line
        super().flatten_mapping(node)
        # Merged mappings put their keys before the node's own; once each keeps nests of them small.
        node.value = list({_name(key): (key, value) for key, value in node.value}.values())


def _name(key: yaml.Node) -> Any:
    return key.value if isinstance(key.value, str) else id(key)


def names_in(folder: str) -> list[str]:
    """Return the names of the YAML files in a folder of conf."""
    files = (Path(file.name) for file in _PACKAGED.joinpath(folder).iterdir())
    return sorted(file.stem for file in files if file.suffix == ".yaml")


def read_named(where: str, name_or_path: str, folder: str) -> Any:
    """Read a YAML file by its name in a folder of conf, or by its path.

    Raises ConfError, which ``where`` opens, for another name and for what cannot be read.
    """
    file: Traversable = Path(name_or_path)
    if name_or_path in names_in(folder):
        file = _PACKAGED.joinpath(folder, f"{name_or_path}.yaml")
    elif not name_or_path.endswith((".yaml", ".yml")):
        names = ", ".join(names_in(folder))
        raise ConfError(f"{where}: expected one of {names}, or a path to a .yaml")
    try:
        return read_yaml(where, file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfError(f"{where}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfError(f"{where}: is not UTF-8 text") from error


def read_yaml(where: str, text: str) -> Any:
    """Return the mappings, lists, texts and nulls of a YAML text.

    Raises ConfError, which ``where`` opens, for text that is not YAML and for a key that is there
    twice.
    """
    try:
        return yaml.load(text.removeprefix("\ufeff"), _Loader)
    except yaml.YAMLError as error:
        raise ConfError(f"{where}: {shown(str(error), 300)}") from error
    except RecursionError as error:
        raise ConfError(f"{where}: is nested too deeply") from error


def read_table(kind: type[T], where: str, name_or_path: str, folder: str) -> T:
    """Return what :func:`read_named` finds as an object; it raises as that does."""
    given = read_named(where, name_or_path, folder)
    try:
        table: T = typed(kind, given)
    except ConfError as error:
        raise ConfError(f"{where}: {error}") from error
    return table


def shown(value: object, length: int = 100) -> str:
    """Return a value as a message shows it: in one line, and not longer than is read."""
    text = value if isinstance(value, str) else reprlib.repr(value).replace("'", "")
    lines = text.splitlines()
    line = text if len(lines) < 2 else " ".join(each.strip() for each in lines)
    return line if len(line) <= length else f"{line[:length]}..."


def typed(hint: Any, value: Any, key: str = "", bound: Bound | None = None) -> Any:
    """Return a value of :func:`read_yaml` as an object of the type that a field has.

    Knows dataclasses, lists, mappings, literals, ``X | None``, text, numbers and booleans; a path
    comes out absolute. Raises ConfError that names the key, the value and what is allowed.
    """
    if is_dataclass(hint):
        return _section(hint, value, key)
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return _one_of(inner, value, key, bound)
    if kind is list:
        if not isinstance(value, list):
            raise _refusal(key, value, "a list, as in [a, b]")
        return [typed(inner[0], each, f"{key}[{i}]", bound) for i, each in enumerate(value)]
    if kind is dict:
        if not isinstance(value, dict):
            raise _refusal(key, value, "a mapping")
        return {str(name): typed(inner[1], each, f"{key}.{name}") for name, each in value.items()}
    if kind is Literal:
        if value not in inner:
            raise _refusal(key, value, f"one of {', '.join(inner)}")
        return value
    return _scalar(hint, value, key, bound or Bound())


@cache
def hints(kind: Any) -> dict[str, Any]:
    """Return the types of a section's keys; what is no section has none."""
    return get_type_hints(kind) if is_dataclass(kind) else {}


def unknown_key(
    key: str, allowed: Iterable[str], method: str | None = None, meant: str | None = None
) -> ConfError:
    """Return the refusal of a key; which keys there are may be the method's.

    ``meant``: the key that may have been meant, where it is not one like those allowed.
    """
    names = sorted(allowed)
    near = [*_near(key, names), *([meant] if meant else [])]
    hint = f"did you mean {near[0]}? " if near else ""
    under = f" (method.name={shown(method)})" if method else ""
    told = f"unknown key; {hint}allowed here: {', '.join(names) or 'nothing'}{under}"
    return ConfError(f"{shown(key, 1000)}: {told}")


def _near(key: str, names: list[str]) -> list[str]:
    """Return the key with its last part that is much like a name in the name's place."""
    parts = key.split(".")
    for place in reversed(range(len(parts))):
        if found := get_close_matches(parts[place], names, n=1, cutoff=0.7):
            return [".".join([*parts[:place], found[0], *parts[place + 1 :]])]
    return []


def _refusal(key: str, value: Any, allowed: str) -> ConfError:
    return ConfError(f"{key}={shown(value)}: must be {allowed}")


def _section(kind: Any, given: Any, key: str) -> Any:
    known, prefix = {each.name: each for each in fields(kind)}, f"{key}." if key else ""
    if not isinstance(given, dict):
        must = f"{key}={shown(given)}: must have" if key else "must be a mapping with"
        raise ConfError(f"{must} the keys {', '.join(known)}")
    values, types = {}, hints(kind)
    for name, value in given.items():
        if name not in known:
            raise unknown_key(f"{prefix}{name}", known)
        about = known[name].metadata
        found = typed(types[name], value, f"{prefix}{name}", about.get("bound"))
        if found and "path" in about and found.endswith(about["path"]):
            found = str(Path(os.path.expanduser(found)).absolute())
        values[name] = found
    for name, each in known.items():
        if name not in given and each.default is each.default_factory is MISSING:
            raise ConfError(f"{prefix}{name}: is missing")
    return kind(**values)


def _one_of(kinds: tuple[Any, ...], value: Any, key: str, bound: Bound | None) -> Any:
    """Return the value as the first kind that it can be; the first kind's refusal counts."""
    if value is None and NoneType in kinds:
        return None
    refusals = []
    for kind in (each for each in kinds if each is not NoneType):
        try:
            return typed(kind, value, key, bound)
        except ConfError as error:
            refusals.append(error)
    raise refusals[0]


def _scalar(kind: type, value: Any, key: str, bound: Bound) -> Any:
    read, allowed = _SCALARS[kind]
    try:
        found = read(value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # no text, or another
        raise _refusal(key, value, allowed) from error
    if kind in (int, float) and not bound.allows(found):
        raise ConfError(f"{key}={found}: {bound.allowed(found)}")
    if kind is int and not -(2**63) <= found < 2**63:
        raise _refusal(key, found, "below 2**63")
    return found


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError
    return value


def _number(value: str) -> float:
    return float(value.replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: dict[type, tuple[Callable[[str], Any], str]] = {
    str: (_text, "text"),
    int: (int, "an integer"),
    float: (_number, "a number"),
    bool: (lambda value: _BOOLS[value.lower()], "true or false"),
}
