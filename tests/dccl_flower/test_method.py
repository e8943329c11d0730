from __future__ import annotations

import pytest

from dccl_flower.config import ConfError
from dccl_flower.method import find_method, method_names


def test_the_methods_of_this_distribution_are_found_by_name():
    assert set(method_names()) >= {"central", "dc_ccl", "fedavg", "heterofl"}


def test_an_unknown_method_is_refused_with_those_there_are():
    with pytest.raises(ConfError, match=r"method\.name=fedsgd: unknown method; known are central"):
        find_method("fedsgd")
