"""Read configurations: a YAML file and ``key=value`` overrides, for the method that they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from dccl_flower.config import Conf, ConfError, MethodConf
from dccl_flower.method import find_method
from dccl_flower.typed_yaml import hints, names_in, read_named, read_yaml, typed, unknown_key

_NULLS = ("", "null", "Null", "NULL", "None")


def conf_names() -> list[str]:
    """Return the names of the configurations that come with the package."""
    return names_in("")


def load_conf(name_or_path: str, overrides: Sequence[str] = ()) -> Conf:
    """Read a configuration, apply ``key=value`` overrides and check it; its paths are absolute.

    The method is that of the overrides, or else the file's, and with it the kind of configuration.
    What a file says for its own method and the chosen one does not know is left out.
    Raises ConfError for an unknown name or key, a wrong type or a value out of range.
    """
    where = f"conf {name_or_path!r}"
    given = read_named(where, name_or_path, "")
    if not isinstance(given, dict | None):
        raise ConfError(f"{where}: expected a mapping of keys to values")
    return _laid_over(given or {}, overrides, Path(name_or_path).stem)


def with_overrides(conf: Conf, overrides: Sequence[str]) -> Conf:
    """Return a configuration with more overrides, as if it had been a file: see load_conf.

    Without any, that only checks a configuration that was made in Python.
    """
    return _laid_over(read_yaml("conf", dump_conf(conf)), overrides, conf.name)


def _laid_over(given: dict[str, Any], overrides: Sequence[str], name: str) -> Conf:
    pairs = [_split(text) for text in overrides]
    own = _method_name(given.get("method"), MethodConf.name)
    chosen = own
    for key, text in pairs:
        if key == "method.name":
            chosen = text
        elif key == "method":
            chosen = _method_name(read_yaml(key, text), chosen)
    kind = find_method(chosen).conf
    tree = _kept(given, kind, find_method(own).conf, chosen)
    typed(kind, tree)  # what is wrong in the file stays wrong under an override
    for key, text in pairs:
        _lay_over(tree, _layer(kind, key, text, chosen))
    conf: Conf = typed(kind, tree)
    if conf.name == "unnamed":
        conf.name = name
    conf.check()
    return conf


def dump_conf(conf: Conf) -> str:
    """Return the resolved configuration as YAML that :func:`load_conf` reads back."""
    # Escapes beside ASCII: PyYAML folds the line breaks of Unicode where it may write them.
    return yaml.safe_dump(asdict(conf), sort_keys=False)


def _split(override: str) -> tuple[str, str]:
    key, equals, text = override.partition("=")
    if not key or not equals:
        raise ConfError(f"override {override!r}: expected key=value")
    return key, text


def _method_name(section: Any, otherwise: str) -> str:
    name = section.get("name") if isinstance(section, dict) else None
    return name if isinstance(name, str) else otherwise


def _kept(given: dict[str, Any], kind: Any, own: Any, method: str, prefix: str = "") -> Any:
    """Return what ``kind`` knows of a section; what ``own`` alone knows is left out."""
    kept, types = {}, hints(kind)
    for name, value in given.items():
        if name in types:
            if is_dataclass(types[name]) and isinstance(value, dict):
                child = hints(own).get(name)
                value = _kept(value, types[name], child, method, f"{prefix}{name}.")
            kept[name] = value
        elif name not in hints(own):
            raise unknown_key(f"{prefix}{name}", types, method)
    return kept


def _layer(kind: Any, key: str, text: str, method: str) -> dict[str, Any]:
    """Return an override as nested sections; its text is YAML where no single value belongs."""
    hint, parts = kind, key.split(".")
    for part in parts:
        if get_origin(hint) is dict:
            hint = get_args(hint)[1]
        elif part in hints(hint):
            hint = hints(hint)[part]
        else:
            meant = _elsewhere(kind, key)  # the key of a section, without it
            raise unknown_key(key, hints(hint), method, meant)
    layer: Any = text
    if is_dataclass(hint) or {get_origin(each) for each in (hint, *get_args(hint))} & {list, dict}:
        layer = read_yaml(key, text)
        if is_dataclass(hint) and isinstance(layer, dict):
            layer = _kept(layer, hint, hint, method, f"{key}.")
    elif type(None) in get_args(hint) and text in _NULLS:
        layer = None
    return reduce(lambda inner, part: {part: inner}, reversed(parts), layer)


def _elsewhere(kind: Any, name: str, prefix: str = "") -> str | None:
    """Return the first key of that name in any section."""
    for each, hint in hints(kind).items():
        if each == name:
            return f"{prefix}{each}"
        if is_dataclass(hint) and (found := _elsewhere(hint, name, f"{prefix}{each}.")):
            return found
    return None


def _lay_over(tree: dict[str, Any], layer: dict[str, Any]) -> None:
    for name, value in layer.items():
        if isinstance(value, dict) and isinstance(tree.get(name), dict):
            _lay_over(tree[name], value)
        else:
            tree[name] = value
