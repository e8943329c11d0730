from __future__ import annotations

from dataclasses import dataclass, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dccl_flower.turns import from_config, to_config


@dataclass(frozen=True)
class Steps:
    """Part of a turn."""

    steps: int
    max_norm: float


@dataclass(frozen=True)
class Learn:
    """A turn with a field of each type."""

    recipe: Steps
    loss: str
    keeps: bool
    rate: float = 0.5


@dataclass(frozen=True)
class Clash:
    """A turn whose part has a field of its own name."""

    recipe: Steps
    steps: int


LEARN = Learn(Steps(3, 1.0), "ce", True)
numbers = st.floats(allow_nan=False)
learns = st.builds(
    Learn, st.builds(Steps, st.integers(), numbers), st.text(min_size=1), st.booleans(), numbers
)


def test_a_turn_becomes_plain_values_by_key():
    assert to_config(LEARN) == {
        "turn": "Learn",
        "steps": 3,
        "max-norm": 1.0,
        "loss": "ce",
        "keeps": True,
        "rate": 0.5,
    }


@given(learns)
def test_what_goes_out_comes_back_whole(turn):
    config = {**to_config(turn), "device": 3, "server-round": 1}
    assert from_config(config, [Steps, Learn]) == turn


@pytest.mark.parametrize("key", [key for key in to_config(LEARN) if key != "turn"])
def test_a_field_that_is_missing_is_an_error_even_with_a_default(key):
    config = to_config(LEARN)
    del config[key]
    with pytest.raises(ValueError, match=f"the field '{key}' is missing"):
        from_config(config, [Learn])


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", 3.0), ("steps", True), ("loss", ""), ("loss", 1), ("keeps", 1), ("rate", "0.5")],
)
def test_a_value_of_another_type_is_refused(key, value):
    with pytest.raises(ValueError, match=f"Learn: {key}=|Steps: {key}="):
        from_config({**to_config(LEARN), key: value}, [Learn])


def test_a_whole_number_is_a_float_where_one_is_meant():
    back = from_config({**to_config(LEARN), "rate": 2}, [Learn])
    assert (back.rate, type(back.rate)) == (2.0, float)


@pytest.mark.parametrize("config", [{}, {"turn": "Forget"}])
def test_a_turn_that_is_not_known_names_those_that_are(config):
    with pytest.raises(ValueError, match="known here: Steps, Learn"):
        from_config(config, [Steps, Learn])


def test_two_fields_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two fields are called 'steps'"):
        to_config(Clash(Steps(1, 1.0), 2))


def test_what_does_not_travel_is_refused_before_it_is_sent():
    assert [each.name for each in fields(Learn)][1] == "loss"
    with pytest.raises(TypeError, match="loss=None: must be str"):
        to_config(Learn(Steps(1, 1.0), None, True))
