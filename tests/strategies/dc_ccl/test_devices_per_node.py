"""Devices that share messages come to the same as devices with a message each.

Copies are trained to the same bits whoever shares a message. What differs is the order in which
float64 sums of them run, before one rounding to float32: that moves a bit only where a sum lies
next to a tie, as it does for units that are dead on all devices. Hence 1e-6, and equal bits where
every message speaks for one device.
"""

from __future__ import annotations

import pytest
import torch
from local_grid import LocalGrid
from tiny import mixed_loader, replied_devices, tiny_app, tiny_cloud, tiny_state, tiny_strategy

from dccl_flower.image_config import TwoSidedRoundsConf as RoundsConf
from dccl_flower.learning.fusion import Fusion, average

EVERYWHERE = [(nodes, size) for nodes in (1, 2, 4) for size in (1, 2, 5, 100)][1:]
SOME = [(1, 100), (2, 2)]
WIRE = ("co_down", "co_up", "mimic_down", "exemplars_down")
LATE = {"freeze_statistics_after": 0.0}
ALL_OPTIONS = {
    "fusion": Fusion(True, True),
    "statistics": "mixed",
    "rounds": {**LATE, "keep_momentum": True},
    "exemplars": 6,
}
CASES = {
    "average": ({}, EVERYWHERE),
    "all options": (ALL_OPTIONS, EVERYWHERE),
    "class-wise head": ({"fusion": Fusion(class_wise_head=True)}, SOME),
    "mixed statistics": (
        {"fusion": Fusion(pooled_statistics=True), "statistics": "mixed", "rounds": LATE},
        SOME,
    ),
    "devices alone": (
        {"fusion": Fusion(class_wise_head=True), "rounds": {"cloud_weight": 0.0}},
        SOME,
    ),
    "drift correction": ({"rounds": {"scaffold": True, "server_momentum": 0.5}}, SOME),
    "head tuning": ({"head_tuning": True}, SOME),
    "fp16": ({"codec": "fp16"}, [(1, 5), (2, 5)]),
    "int8": ({"codec": "int8"}, [(1, 5), (2, 5)]),
}


@pytest.fixture(scope="module")
def prepared():
    """Return a cloud's weights, so that it is pretrained once for all runs."""
    cloud = tiny_cloud()
    cloud.prepare()
    return cloud.state_dict()


class Run:
    """Two rounds of five of seven devices, and all that must not depend on who shares messages."""

    def __init__(self, store, prepared, nodes, size, **options):
        rounds, fails = options.pop("rounds", {}), options.pop("fails", set())
        cloud = tiny_cloud()
        cloud.load_state_dict(prepared)
        self.strategy = tiny_strategy(
            num_devices=7,
            devices_per_round=5,
            cloud=cloud,
            devices_per_node=size,
            rounds=RoundsConf(**{"count": 2, "local_steps": 2, "lr": 0.05, **rounds}),
            **options,
        )
        self.grid = LocalGrid(tiny_app(store, load_data=mixed_loader), nodes)
        self.grid.fails = fails
        self.recorded = []
        start = self.strategy.initial_arrays()
        result = self.strategy.start(self.grid, start, num_rounds=2, evaluate_fn=self.record)
        self.state = tiny_state(result.arrays)
        self.metrics = result.train_metrics_clientapp
        self.wire = {kind: self.strategy.ledger.totals[kind] for kind in WIRE}

    def record(self, server_round, arrays):
        self.recorded.append(sorted(replied_devices(self.strategy)))

    def sizes(self):
        """Return how many devices each train message of the first round speaks for."""
        configs = [m.content["config"] for m in self.grid.sent if "arrays" in m.content]
        first = [c for c in configs if c["server-round"] == 1 and c["turn"] == "Train"]
        return sorted(len(c["devices"]) if "devices" in c else 1 for c in first)


@pytest.mark.parametrize("case", CASES)
def test_sharing_messages_changes_no_number(tmp_path, prepared, case):
    options, layouts = CASES[case]
    alone = Run(tmp_path / "alone", prepared, 1, 1, **options)
    assert [len(devices) for devices in alone.recorded] == [0, 5, 5]
    for nodes, size in layouts:
        run = Run(tmp_path / f"{nodes} {size}", prepared, nodes, size, **options)
        for name, tensor in alone.state.items():
            torch.testing.assert_close(run.state[name], tensor, rtol=0, atol=1e-6)
            if size == 1:
                assert torch.equal(run.state[name], tensor), name
        assert run.wire == alone.wire
        assert run.recorded == alone.recorded
        for server_round in (1, 2):
            told, expected = run.metrics[server_round], alone.metrics[server_round]
            assert dict(told) == pytest.approx(dict(expected), abs=1e-6)


def test_the_numbers_compared_come_of_shared_messages_and_of_training(tmp_path, prepared):
    # Of two nodes the first plays 0, 2 and 4.
    sizes = {(1, 1): [1] * 5, (1, 2): [1, 2, 2], (1, 100): [5], (2, 5): [2, 3]}
    for (nodes, size), expected in sizes.items():
        run = Run(tmp_path / f"{nodes} {size}", prepared, nodes, size)
        assert run.recorded[1] == [0, 2, 3, 4, 5]
        assert run.sizes() == expected
        start = tiny_state(run.strategy.initial_arrays())
        assert (run.state["3.weight"] - start["3.weight"]).abs().max() > 1e-2


@pytest.mark.parametrize("fusion", [Fusion(a, b) for a in (False, True) for b in (False, True)])
def test_messages_for_one_device_each_come_to_the_same_bits(tmp_path, prepared, fusion):
    statistics = "fused" if fusion.pooled_statistics else "batch"
    options = {"fusion": fusion, "statistics": statistics, "rounds": LATE}
    alone, listed = (Run(tmp_path / str(size), prepared, 7, size, **options) for size in (1, 5))
    assert listed.sizes() == alone.sizes() == [1] * 5
    assert all("devices" in m.content["config"] for m in listed.grid.sent if "arrays" in m.content)
    for name, tensor in alone.state.items():
        assert torch.equal(listed.state[name], tensor), name


def test_devices_that_share_a_message_fail_together(tmp_path, prepared):
    options = {"rounds": {"min_replies": 0.4}, "fails": {3}}
    alone, shared = (Run(tmp_path / str(size), prepared, 2, size, **options) for size in (1, 5))
    assert alone.recorded[1] == [0, 2, 4, 5]
    assert shared.recorded[1] == [0, 2, 4]
    # Two rounds of all devices of a cohort but those that failed with device 3.
    answered = [sum(map(len, run.recorded)) for run in (alone, shared)]
    assert alone.wire["co_up"] * answered[1] == shared.wire["co_up"] * answered[0] > 0
    assert alone.wire["co_down"] == shared.wire["co_down"]


def test_a_rule_of_the_callers_own_cannot_be_told_to_a_worker():
    def own_rule(cloud, devices, cloud_weight):
        return average(cloud, devices, cloud_weight)

    with pytest.raises(
        ValueError, match=r"^devices_per_node: not with fusion=.*own_rule.*, which is not a Fusion$"
    ):
        tiny_strategy(fusion=own_rule, devices_per_node=2)
    tiny_strategy(fusion=own_rule)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": lambda cloud, devices, weight: {}}, "which is not a Fusion"),
        ({"statistics": "mixed"}, "needs a fusion with pooled statistics"),
        (
            {"rounds": RoundsConf(scaffold=True), "fusion": Fusion(class_wise_head=True)},
            "not with SCAFFOLD and a class-wise head",
        ),
    ],
)
def test_what_merged_copies_would_change_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_strategy(devices_per_node=2, **options)
    tiny_strategy(devices_per_node=1, **options)
