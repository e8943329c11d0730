"""YAML in which text stays text until the field of a dataclass says what it means."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from dccl_flower.config import Bound, ConfError

_TAG = "tag:yaml.org,2002:"
_BOOLS = dict.fromkeys(("true", "yes", "on", "1"), True)
_BOOLS |= dict.fromkeys(("false", "no", "off", "0"), False)


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


def names_in(folder: Traversable) -> list[str]:
    """Return the names of the YAML files in a folder of the package."""
    names = (file.name for file in folder.iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def read_named(where: str, name_or_path: str, folder: Traversable) -> Any:
    """Read a YAML file by its name in a folder of the package, or by its path.

    Raises ConfError, which ``where`` opens, for another name and for what cannot be read.
    """
    names = names_in(folder)
    file: Traversable
    if name_or_path in names:
        file = folder.joinpath(f"{name_or_path}.yaml")
    elif name_or_path.endswith((".yaml", ".yml")):
        file = Path(name_or_path)
    else:
        raise ConfError(f"{where}: expected one of {', '.join(names)}, or a path to a .yaml")
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


def shown(value: object, length: int = 100) -> str:
    """Return a value as a message shows it: in one line, and not longer than is read."""
    text = value if isinstance(value, str) else reprlib.repr(value).replace("'", "")
    lines = text.splitlines()
    line = text if len(lines) < 2 else " ".join(each.strip() for each in lines)
    return line if len(line) <= length else f"{line[:length]}..."


def typed(hint: Any, value: Any, key: str = "") -> Any:
    """Return a value of :func:`read_yaml` as an object of the type that a field has.

    Knows dataclasses, lists, mappings, literals, ``X | None``, text, numbers and booleans; a path
    comes out absolute. Raises ConfError that names the key, the value and what is allowed.
    """
    if is_dataclass(hint):
        return _section(hint, value, key)
    if get_origin(hint) in (Union, UnionType):
        return None if value is None else typed(get_args(hint)[0], value, key)
    if get_origin(hint) is list:
        if not isinstance(value, list):
            raise ConfError(f"{key}={shown(value)}: must be a list, as in [a, b]")
        item = get_args(hint)[0]
        return [typed(item, each, f"{key}[{i}]") for i, each in enumerate(value)]
    if get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise ConfError(f"{key}={shown(value)}: must be a mapping")
        item = get_args(hint)[1]
        return {str(name): typed(item, each, f"{key}.{name}") for name, each in value.items()}
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            allowed = ", ".join(get_args(hint))
            raise ConfError(f"{key}={shown(value)}: must be one of {allowed}")
        return value
    read, allowed = _SCALARS[hint]
    try:
        if isinstance(value, str):
            return read(value)
    except (ValueError, KeyError):
        pass
    raise ConfError(f"{key}={shown(value)}: must be {allowed}")


@cache
def hints(kind: Any) -> dict[str, Any]:
    """Return the types of a section's keys; what is no section has none."""
    return get_type_hints(kind) if is_dataclass(kind) else {}


def unknown_key(key: str, allowed: Iterable[str], method: str | None = None) -> ConfError:
    """Return the refusal of a key; which keys there are may be the method's."""
    beside = ", ".join(sorted(allowed)) or "nothing"
    under = f" (method.name={shown(method)})" if method else ""
    return ConfError(f"{shown(key, 1000)}: unknown key; allowed here: {beside}{under}")


def check_bounds(section: Any, prefix: str = "") -> None:
    """Raise ConfError for the first number of a section that its field does not allow."""
    for each in fields(section):
        value = getattr(section, each.name)
        for item in value if isinstance(value, list) else [value]:
            if is_dataclass(item):
                check_bounds(item, f"{prefix}{each.name}.")
            elif isinstance(item, (int, float)):
                _check_number(
                    f"{prefix}{each.name}={item}", item, each.metadata.get("bound", Bound())
                )


def _check_number(given: str, value: float, bound: Bound) -> None:
    if not bound.allows(value):
        raise ConfError(f"{given}: {bound.allowed(value)}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ConfError(f"{given}: must be below 2**63")


def _section(kind: Any, given: Any, key: str) -> Any:
    known, prefix = {each.name: each for each in fields(kind)}, f"{key}." if key else ""
    if not isinstance(given, dict):
        raise ConfError(f"{key}={shown(given)}: must have the keys {', '.join(known)}")
    values, types = {}, hints(kind)
    for name, value in given.items():
        if name not in known:
            raise unknown_key(f"{prefix}{name}", known)
        values[name] = typed(types[name], value, f"{prefix}{name}")
        suffixes = known[name].metadata.get("path")
        if suffixes and values[name] and values[name].endswith(suffixes):
            values[name] = str(Path(os.path.expanduser(values[name])).absolute())
    for name, each in known.items():
        if name not in given and each.default is each.default_factory is MISSING:
            raise ConfError(f"{prefix}{name}: is missing")
    return kind(**values)


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError
    return value


def _number(value: str) -> float:
    return float(value.replace(".inf", "inf").replace(".nan", "nan"))


def _bool(value: str) -> bool:
    return _BOOLS[value.lower()]


_SCALARS: dict[Any, tuple[Callable[[str], Any], str]] = {
    str: (_text, "text"),
    int: (int, "an integer"),
    float: (_number, "a number"),
    bool: (_bool, "true or false"),
}
