"""Who holds what, in a line of words for titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from dccl_flower.data.labels import RANGE

MOST_NAMES = 6


def split_words(conf: Mapping[str, Any], names: Sequence[str] = ()) -> str:
    """Return what cloud and devices hold by a configuration as plain values; for a log nothing.

    ``names``: those of the classes, which stand in the place of their numbers.
    """
    split, count = conf.get("split"), conf["devices"]["count"]
    if split is None:
        return ""
    if split["by"] == "fraction":
        share = f"{100 * split['device_fraction']:.3g} % of the images"
        return f"{share} on {count} devices, the rest on the cloud"
    cloud, devices = (_classes(split[f"{side}_classes"], names) for side in ("cloud", "device"))
    return f"{cloud} on the cloud, {devices} on {count} devices"


def _classes(given: Any, names: Sequence[str]) -> str:
    if given == "rest":
        return "the other classes"
    shown = [names[each] if isinstance(each, int) and each < len(names) else each for each in given]
    words = [str(each) for each in shown]
    if any(RANGE.fullmatch(word) for word in words):
        return f"classes {', '.join(words)}"
    if len(words) > 2 and all(word.isdigit() for word in words):
        numbers = sorted(map(int, words))
        if all(after == before + 1 for before, after in pairwise(numbers)):
            return f"classes {numbers[0]}-{numbers[-1]}"
    if len(words) > MOST_NAMES:
        return f"{len(words)} classes"
    listed = ", ".join(words)
    if not all(word.isdigit() for word in words):
        return listed
    return f"class {listed}" if len(words) == 1 else f"classes {listed}"
