"""Confs with junk in them: every key of every one that comes along, with any value."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dccl_flower.config import ConfError
from dccl_flower.config_loading import conf_names, load_conf, with_overrides
from dccl_flower.typed_yaml import hints

CONFS = {name: load_conf(name) for name in conf_names()}
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.dates()
)
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def keys_of(kind, prefix=""):
    """Yield the dotted keys of a conf, sections too."""
    for each in fields(kind):
        yield f"{prefix}{each.name}"
        if is_dataclass(inner := hints(kind)[each.name]):
            yield from keys_of(inner, f"{prefix}{each.name}.")


def told(load, *given):
    """Return what a conf is refused with; nothing where it is taken."""
    try:
        load(*given)
    except ConfError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", CONFS)
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_value_of_any_key_is_taken_or_refused_in_one_line(name, data):
    key = data.draw(st.sampled_from(sorted(keys_of(type(CONFS[name])))))
    text = data.draw(st.one_of(st.text(max_size=20), trees.map(lambda tree: yaml.safe_dump(tree))))
    message = told(with_overrides, CONFS[name], [f"{key}={text}"])
    assert message is None or (len(message.splitlines()) == 1 and len(message) < 2000)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.sampled_from(sorted({*keys_of(type(CONFS["digits"]))})), trees))
def test_any_file_is_taken_or_refused_in_one_line(tmp_path_factory, given):
    file = tmp_path_factory.mktemp("conf") / "mine.yaml"
    file.write_text(yaml.safe_dump({key.split(".")[0]: value for key, value in given.items()}))
    message = told(load_conf, str(file))
    assert message is None or (len(message.splitlines()) == 1 and len(message) < 2000)
