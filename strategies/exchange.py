"""What methods share: an ask for each width, and answers as the copies that fusion rules take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache

from dccl_flower.fleet.profiles import Fleet
from dccl_flower.learning.fusion import Copy, Fusion, merge
from dccl_flower.method import Answer, Ask

CLASS_COUNTS = "class-counts"


def asks_by_width(
    devices: Iterable[int], fleet: Fleet | None, ask: Callable[[float], Ask]
) -> dict[int, Ask]:
    """Ask each device for the share of the width of its tier; those of a width share an ask."""
    shared = cache(ask)
    return {d: shared(1.0 if fleet is None else fleet.tier_of(d).co_share) for d in devices}


def copies_of(answers: Iterable[Answer]) -> list[Copy]:
    """Return the trained copies, with the samples and, where told, the classes behind them."""
    return [Copy(each.state, each.count, each.beside.get(CLASS_COUNTS)) for each in answers]


def devices_of(answers: Iterable[Answer]) -> list[int]:
    """Return all who answered, each for itself or merged with others, in order."""
    return sorted(device for each in answers for device in (each.device, *each.others))


def merge_answers(answers: Sequence[Answer], fusion: Fusion) -> Answer:
    """Return one answer that fuses as these would one by one."""
    merged = merge(copies_of(answers), fusion)
    counts = {} if merged.class_counts is None else {CLASS_COUNTS: merged.class_counts}
    return Answer(answers[0].device, merged.state, merged.count, {}, counts)
