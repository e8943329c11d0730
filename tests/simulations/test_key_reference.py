"""The reference of the configuration is made from the types, and lacks no key."""

from __future__ import annotations

import re

from dccl_flower.method import find_method, method_names
from dccl_flower.simulations.key_reference import reference
from dccl_flower.simulations.key_table import rows_of


def test_every_key_of_every_method_is_told_with_its_default():
    text = reference()
    for name in method_names():
        for key, value, _ in rows_of(find_method(name).conf()):
            assert f"| `{key}` | `{value}` |" in text, (name, key)


def test_what_methods_share_is_told_once():
    text = reference()
    assert text.count("| `wire.codec` |") == text.count("| `loss` |") == 1
    central = text.partition("## `method.name=central`")[2]
    assert "Beside the keys of *`method.name=dc_ccl`*." in central
    assert re.findall(r"\| `(.*?)` \|", central) == ["method.model", "method.data"]


def test_a_section_says_what_its_keys_mean():
    section = reference().partition("### `distil`")[2].partition("###")[0]
    assert "a tenth of the rate in the second half" in section
