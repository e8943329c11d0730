"""The names at the top of the package are documented, and their examples hold."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

import dccl_flower

NAMES = [name for name in dccl_flower.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_documented_and_its_examples_hold(name):
    public = getattr(dccl_flower, name)
    assert public.__doc__
    home = import_module(public.__module__)
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(public, name, globs=vars(home).copy()):
        runner.run(test)
    assert runner.failures == 0


def test_the_halves_of_a_split_share_out_the_channels():
    finder = doctest.DocTestFinder()
    (test,) = finder.find(dccl_flower.vertical_split, "vertical_split")
    assert len(test.examples) == 4
