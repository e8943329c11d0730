"""Every bounded field refuses what lies just outside, and takes the edge that is its own."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from math import inf, isfinite, nan, nextafter
from operator import attrgetter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dccl_flower.config import ConfError
from dccl_flower.config_loading import with_overrides
from dccl_flower.fleet.profiles import Tier
from dccl_flower.strategies.dc_ccl.conf import DcCclConf
from dccl_flower.typed_yaml import Bound, hints, typed


def numbers(kind, prefix=""):
    """Yield key, type and bound of every number of a section and those below it."""
    for each in fields(kind):
        hint = hints(kind)[each.name]
        if is_dataclass(hint):
            yield from numbers(hint, f"{prefix}{each.name}.")
        elif hint in (int, float, float | None):
            number = int if hint is int else float
            yield f"{prefix}{each.name}", number, each.metadata.get("bound", Bound())


NUMBERS = {key: (kind, bound) for key, kind, bound in numbers(DcCclConf)}
TIERS = {key: (kind, bound) for key, kind, bound in numbers(Tier)}


def step(kind, value, up):
    return value + (1 if up else -1) if kind is int else nextafter(value, inf if up else -inf)


def edges(kind, bound):
    """Return the outermost numbers that a bound allows, and those just beyond them."""
    inside, outside = [], []
    for limit, open_end, up in (
        (bound.above, True, False),
        (bound.at_least, False, False),
        (bound.below, True, True),
        (bound.at_most, False, True),
    ):
        if isfinite(limit):
            value = kind(limit)
            inside.append(step(kind, value, not up) if open_end else value)
            outside.append(value if open_end else step(kind, value, up))
    return inside, outside


def refused(conf, key):
    with pytest.raises(ConfError) as caught:
        with_overrides(conf, [])
    assert str(caught.value).startswith(f"{key}={attrgetter(key)(conf)}: must ")
    assert len(str(caught.value).splitlines()) == 1


def with_value(key, value):
    conf = DcCclConf()
    conf.devices.profiles = "phones"
    conf.rounds.head_tuning_clip = 1.0  # of which the noise is a multiple
    *sections, name = key.split(".")
    setattr(attrgetter(".".join(sections))(conf) if sections else conf, name, value)
    return conf


def test_every_number_but_a_gain_has_a_bound():
    assert [key for key, (_, bound) in NUMBERS.items() if bound == Bound()] == ["target_gain"]
    assert len(NUMBERS) > 35


@pytest.mark.parametrize("key", NUMBERS)
def test_a_bound_holds_at_its_edges(key):
    kind, bound = NUMBERS[key]
    inside, outside = edges(kind, bound)
    for value in inside:
        with_overrides(with_value(key, value), [])
    for value in outside + ([inf, -inf, nan] if kind is float else [2**63, -(2**63) - 1]):
        refused(with_value(key, value), key)


@settings(deadline=None)
@given(st.data())
def test_a_number_is_allowed_where_its_bound_says_so(data):
    key = data.draw(st.sampled_from(sorted(NUMBERS)))
    kind, bound = NUMBERS[key]
    value = data.draw(st.integers() if kind is int else st.floats())
    low, high = bound.at_least, bound.at_most
    if low <= value <= high and bound.above < value < bound.below and abs(value) < 2**63:
        with_overrides(with_value(key, value), [])
    elif kind is int or not abs(value) < inf or not low <= value <= high:
        refused(with_value(key, value), key)


def texts(numbers):
    return {key: repr(value) for key, value in numbers.items()}


@pytest.mark.parametrize("key", TIERS)
def test_a_tier_s_numbers_have_bounds_too(key):
    kind, bound = TIERS[key]
    assert bound != Bound()
    good = dict.fromkeys(TIERS, 0.5)
    inside, outside = edges(kind, bound)
    for value in inside:
        tier = typed(Tier, {"name": "a"} | texts(good | {key: value}))
        assert getattr(tier, key) == value
    for value in [*outside, inf, nan]:
        with pytest.raises(ConfError, match=rf"^tiers\[0\]\.{key}=.*: must be "):
            typed(Tier, {"name": "a"} | texts(good | {key: value}), "tiers[0]")


@pytest.mark.parametrize(
    ("bound", "value", "text"),
    [
        (Bound(above=0, below=1), 1.0, "must lie between 0 and 1, both excluded"),
        (Bound(at_least=0, at_most=1), 2.0, "must lie between 0 and 1"),
        (Bound(above=0, at_most=1), 2.0, "must be above 0 and at most 1"),
        (Bound(at_least=0, below=1), 2.0, "must be at least 0 and below 1"),
        (Bound(above=0), 0.0, "must be above 0 and finite"),
        (Bound(at_least=2), 1, "must be at least 2"),
        (Bound(), nan, "must be finite"),
    ],
)
def test_a_bound_says_what_it_allows(bound, value, text):
    assert not bound.allows(value)
    assert bound.allowed(value) == text


def test_items_of_a_list_are_looked_at_too():
    conf = DcCclConf()
    conf.arms.changes = {"a": ["rounds.lr=1", " "]}
    with pytest.raises(ConfError, match=r"^arms\.changes\.a\[1\]= : must be text"):
        with_overrides(conf, [])
