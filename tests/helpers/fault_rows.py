"""Every fault, injected: ``make faults`` prints how each ends, against what is declared of it.

A row is a name and its tries; rows of other trouble go into ROWS as these do.
"""

from __future__ import annotations

import io
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp.exception import AggregationError
from local_grid import LocalGrid
from tiny import replied_devices, tiny_app, tiny_cloud, tiny_state, tiny_strategy

from dccl_flower.image_config import TwoSidedRoundsConf

DEVICE, ROUNDS = 2, 2
CONF = TwoSidedRoundsConf(count=ROUNDS, local_steps=2, lr=0.05, min_replies=0.8)
POLICIES = ("skip_device", "ask_again", "stop")


@dataclass(frozen=True)
class Try:
    """How one injection ended: as the policy declares, and how many rounds brought no state."""

    as_declared: bool
    rounds_lost: int


@dataclass(frozen=True)
class Row:
    """A fault and its tries, each in a folder of its own."""

    name: str
    tries: Callable[[Path], Iterator[Try]]


@dataclass(frozen=True)
class Bad:
    """What is done to a device's reply or store before the last round, and what it is called.

    ``counts``: a good answer of the device stands beside the fault, or is mended in the round.
    ``heals``: no policy stops for it.
    """

    kind: str
    reply: Callable[[Message, Message], list[Message]] = lambda reply, last: [reply]
    store: Callable[[Path], object] = lambda store: None
    counts: bool = False
    heals: bool = False
    keeps: bool = False  # the device keeps momentum
    max_norm: float | None = None
    times: int = 1


class Run:
    """Two rounds of a tiny federation, the second with mischief."""

    def __init__(self, folder: Path, conf: TwoSidedRoundsConf) -> None:
        self.store = folder
        self.strategy = tiny_strategy(rounds=conf, cloud=tiny_cloud())
        self.strategy.is_private = False
        self.grid = LocalGrid(tiny_app(folder), 5, reports_errors=True)
        self.arrays = self.strategy.initial_arrays()

    def play(self, number: int, change=lambda reply: [reply]) -> dict[int, Message]:
        messages = self.strategy.configure_train(number, self.arrays, ConfigRecord(), self.grid)
        replies, by_device = self.grid.send_and_receive(messages), {}
        for message, reply in zip(reversed(messages), replies, strict=True):
            by_device[message.content["config"]["device"]] = reply
        changed = [
            r for d, reply in by_device.items() for r in (change(reply) if d == DEVICE else [reply])
        ]
        self.arrays, _ = self.strategy.aggregate_train(number, changed)
        return by_device

    def state(self) -> dict[str, torch.Tensor]:
        return tiny_state(self.arrays)


def tries_of(bad: Bad, folder: Path) -> Iterator[Try]:
    for policy in POLICIES:
        place = folder / policy
        yield _one_try(bad, policy, place)


def _one_try(bad: Bad, policy: str, place: Path) -> Try:
    conf = replace(CONF, on_failure=policy, keep_momentum=bad.keeps, max_norm=bad.max_norm)
    run, whole, without = (Run(place / name, each) for name, each in _confs(conf))
    last = run.play(1)[DEVICE]
    for reference in (whole, without):
        reference.play(1)
    whole.play(2)
    without.play(2, lambda reply: [])
    run.strategy.facts()
    bad.store(run.store)
    try:
        run.play(2, lambda reply: bad.reply(reply, last))
    except AggregationError as error:
        named = bad.kind in str(error) and "\n" not in str(error)
        return Try(policy == "stop" and not bad.heals and named, 1)
    is_counted = run.strategy.facts().faults.get(bad.kind) == bad.times
    is_mended = bad.counts or (policy == "ask_again" and not bad.keeps)
    expected = (whole if is_mended else without).state()
    is_equal = all(torch.equal(t, expected[name]) for name, t in run.state().items())
    if policy == "ask_again" and bad.keeps and not bad.counts:  # it began anew
        is_equal = DEVICE in replied_devices(run.strategy)
    return Try(is_counted and is_equal and (policy != "stop" or bad.heals), 0)


def _confs(conf: TwoSidedRoundsConf) -> Iterator[tuple[str, TwoSidedRoundsConf]]:
    yield "run", conf
    yield "whole", replace(conf, on_failure="skip_device")
    yield "without", replace(conf, on_failure="skip_device")


def with_metrics(**told):
    def change(reply, last):
        for name, value in told.items():
            if value is None:
                del reply.content["metrics"][name]
            else:
                reply.content["metrics"][name] = value
        return [reply]

    return change


def with_arrays(make):
    def change(reply, last):
        (old,) = (array.numpy() for array in reply.content["arrays"].values())
        made = make(np.array(old))
        reply.content["arrays"] = ArrayRecord({str(i): a for i, a in enumerate(made)})
        return [reply]

    return change


def with_value(value):
    def make(old):
        old[3] = value
        return [Array(old)]

    return with_arrays(make)


def declaring(count):
    def make(old):
        file = io.BytesIO()
        header = {"descr": "<f4", "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)
        return [Array("float32", (count,), "numpy.ndarray", file.getvalue() + bytes(16))]

    return with_arrays(make)


def raised(reason):
    def change(reply, last):
        error = Message(Error(1, reason), reply_to=last)
        error.metadata.__dict__["_src_node_id"] = reply.metadata.src_node_id
        error.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
        return [error]

    return change


def as_stranger(reply, last):
    other = Message(RecordDict(dict(reply.content)), reply_to=last)
    metrics = dict(reply.content["metrics"]) | {"device": 99}
    other.content["metrics"] = type(reply.content["metrics"])(metrics)
    return [reply, other]


def kept(name, damage):
    def change(store):
        files = [p for p in (store / "own" / str(DEVICE)).rglob("*") if p.is_file()]
        for path in files:  # of each turn, or one alone
            if path.name.startswith(name) or path.parent.name == name:
                path.write_bytes(damage(path.read_bytes()))

    return change


DAMAGES = {
    "truncated": lambda content: content[:-1],
    "emptied": lambda content: b"",
    "with a bit flipped": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
}
RAISED = "<class 'ClientAppException'>:<'\nException ClientAppException occurred. Message: {}'>"
BADS = {
    "client raises": Bad("raised", raised(RAISED.format("ValueError: no"))),
    "MemoryError": Bad("raised", raised(RAISED.format("MemoryError: no message"))),
    "an error without a reason": Bad("raised", raised("")),
    "a turn past the time limit": Bad("late", raised(RAISED.format("late: took longer"))),
    "a blob that fails its hash": Bad("blob", raised(RAISED.format("blob: device 2 got it"))),
    "no answer": Bad("silent", lambda reply, last: []),
    "NaN": Bad("not_finite", with_value(np.nan)),
    "Inf": Bad("not_finite", with_value(np.inf)),
    "-Inf": Bad("not_finite", with_value(-np.inf)),
    "near the largest float": Bad("overflow", with_value(3e38)),
    "near the least float": Bad("overflow", with_value(-3e38)),
    "an update beyond the norm": Bad("norm", with_value(1e6), max_norm=1e5),
    "wrong shape": Bad("unfit", with_arrays(lambda old: [Array(old[:-1])])),
    "wrong dtype": Bad("unfit", with_arrays(lambda old: [Array(old.astype("float64"))])),
    "array missing": Bad("unfit", with_arrays(lambda old: [])),
    "array extra": Bad("unfit", with_arrays(lambda old: [Array(old), Array(old)])),
    "a header of 1e13 numbers": Bad("unfit", declaring(10**13)),
    "a reply of the last round": Bad("stale", lambda reply, last: [last]),
    "another round's number": Bad("stale", with_metrics(**{"server-round": 7})),
    "answered twice": Bad("twice", lambda reply, last: [reply, reply], counts=True),
    "a stranger beside it": Bad("stranger", as_stranger, counts=True),
    "another device's id": Bad("stranger", with_metrics(device=99)),
    "no device id": Bad("nameless", with_metrics(device=None)),
    **{
        f"{count} samples": Bad("samples", with_metrics(**{"num-examples": count}))
        for count in (0, -1, 1.5, 10**5, 10**15, 2**63 - 1, 2**63)
    },
    **{
        f"momentum {how}": Bad("damaged", store=kept("momentum", damage), keeps=True)
        for how, damage in DAMAGES.items()
    },
    "store deleted between rounds": Bad(
        "lost", store=shutil.rmtree, counts=True, heals=True, times=5
    ),
}
ROWS = [Row(name, partial(tries_of, bad)) for name, bad in BADS.items()]


def main() -> int:
    """Print the table; return 1 where a try ended otherwise than declared."""
    logging.disable(logging.WARNING)
    print("| fault | tries | ended as declared | rounds lost |\n| --- | --- | --- | --- |")
    all_good = True
    for row in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            tries = list(row.tries(Path(folder)))
        good, lost = sum(t.as_declared for t in tries), sum(t.rounds_lost for t in tries)
        print(f"| {row.name} | {len(tries)} | {good} | {lost} |", flush=True)
        all_good = all_good and good == len(tries)
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
