"""Answers of devices as copies that a fusion rule takes, and several as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dccl_flower.learning.fusion import Copy, Fusion, merge
from dccl_flower.method import Answer

CLASS_COUNTS = "class-counts"


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
