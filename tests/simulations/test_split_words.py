"""Titles say who holds what."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.split_words import split_words


@pytest.mark.parametrize(
    ("changes", "names", "expected"),
    [
        ([], (), "classes 0-7 on the cloud, classes 8, 9 on 10 devices"),
        (
            ["split.device_classes=[cat]", "split.cloud_classes=rest", "devices.count=3"],
            (),
            "the other classes on the cloud, cat on 3 devices",
        ),
        (
            ["split.device_classes=[0,2]", "split.cloud_classes=[1]"],
            ("cat", "dog", "eel"),
            "dog on the cloud, cat, eel on 10 devices",
        ),
        (["split.device_classes=[1,3,5,7,8,9,2]"], (), "classes 0-7 on the cloud, 7 classes on"),
        (
            ["split.by=fraction", "split.device_fraction=0.25"],
            (),
            "25 % of the images on 10 devices, the rest on the cloud",
        ),
    ],
)
def test_both_sides_are_told(changes, names, expected):
    assert split_words(asdict(load_conf("digits", changes)), names).startswith(expected)


def test_a_log_has_no_split():
    assert split_words(asdict(load_conf("dccl_world"))) == ""
