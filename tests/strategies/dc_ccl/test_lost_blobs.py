"""What a round does about devices that lost a blob, beside other trouble; see test_dc_ccl.py."""

from __future__ import annotations

import shutil

import pytest
import torch
from flwr.app import ConfigRecord
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping
from local_grid import LocalGrid
from tiny import replied_devices, tiny_app, tiny_state, tiny_strategy

from dccl_flower.image_config import TwoSidedRoundsConf as RoundsConf


class Rounds:
    """Play rounds one by one on a grid that reports errors as Flower does."""

    def __init__(self, store, num_nodes=5, **options):
        self.store = store
        self.strategy = tiny_strategy(**options)
        self.strategy.is_private = False
        self.grid = LocalGrid(tiny_app(store), num_nodes, reports_errors=True)
        self.arrays = self.strategy.initial_arrays()
        self.done = 0

    def play(self, mischief=lambda replies: replies):
        self.done += 1
        messages = self.strategy.configure_train(self.done, self.arrays, ConfigRecord(), self.grid)
        replies = mischief(self.grid.send_and_receive(messages))
        self.arrays, _ = self.strategy.aggregate_train(self.done, replies)

    def lose(self, device):
        shutil.rmtree(self.store / "devices" / str(device))

    def sent(self, kind, server_round=2):
        """Return configs of a kind of message in a round."""
        configs = [m.content["config"] for m in self.grid.sent if m.metadata.message_type == kind]
        return [config for config in configs if config["server-round"] == server_round]


def assert_equal_arrays(left, right):
    left, right = tiny_state(left), tiny_state(right)
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def test_a_device_that_loses_the_mimic_before_head_tuning_is_sent_the_whole_state_again(tmp_path):
    healed, whole = (Rounds(tmp_path / name, head_tuning=True) for name in ("0", "1"))
    losses = ["train.again"]

    def lose_once(message):
        if message.metadata.message_type in losses:
            losses.clear()
            healed.lose(2)

    healed.grid.before_answer = lose_once
    for rounds in (healed, whole):
        rounds.play()
    heads = healed.sent("train.again", 1)
    assert [config["device"] for config in heads] == [0, 1, 2, 3, 4, 2]
    assert ["mimic" in config for config in heads] == [False] * 5 + [True]
    assert_equal_arrays(healed.arrays, whole.arrays)


def test_a_device_that_fails_again_is_asked_no_third_time(tmp_path):
    rounds = Rounds(tmp_path)
    rounds.play()
    rounds.lose(1)
    rounds.grid.before_answer = lambda message: rounds.grid.fails.update(
        {1} if "mimic" in message.content["config"] else ()
    )
    with pytest.raises(AggregationError, match=r"4 of 5 devices answered.*out of memory"):
        rounds.play()
    assert [config["device"] for config in rounds.sent("train")] == [0, 1, 2, 3, 4, 1]


def test_another_device_that_fails_is_named_after_the_lost_mimic_is_mended(tmp_path):
    rounds = Rounds(tmp_path)
    rounds.play()
    rounds.lose(1)
    rounds.grid.fails = {4}
    with pytest.raises(
        AggregationError, match=r"4 of 5 devices answered.* device 4: .*out of memory$"
    ):
        rounds.play()
    # Device 4 is of another node, whose failure has nothing to do with what it holds.
    assert [config["device"] for config in rounds.sent("train")] == [0, 1, 2, 3, 4, 1]


def test_enough_replies_do_without_a_failing_device_and_with_a_healed_one(tmp_path):
    rounds = Rounds(tmp_path, rounds=RoundsConf(count=3, local_steps=2, min_replies=0.8))
    rounds.play()
    rounds.lose(1)
    rounds.grid.fails = {4}
    rounds.play()
    assert replied_devices(rounds.strategy) == [0, 1, 2, 3]


def test_a_device_that_did_not_answer_is_asked_what_it_holds_next_time(tmp_path):
    rounds = Rounds(tmp_path, rounds=RoundsConf(count=3, local_steps=2, min_replies=0.8))
    rounds.grid.fails = {4}
    rounds.play()
    rounds.grid.fails = set()
    before = len(rounds.grid.sent)
    rounds.play()
    queries = [m for m in rounds.grid.sent[before:] if m.metadata.message_type == "query.holds"]
    assert [m.content["config"]["devices"] for m in queries] == [[4]]
    carriers = [config["device"] for config in rounds.sent("train") if "mimic" in config]
    assert carriers == [4]


def test_a_late_reply_is_not_asked_for_again_when_another_node_lost_the_mimic(tmp_path):
    rounds = Rounds(tmp_path, rounds=RoundsConf(count=3, local_steps=2, min_replies=0.8))
    rounds.play()
    rounds.lose(1)

    def without_device_0(replies):
        return [r for r in replies if r.has_error() or r.content["metrics"]["device"] != 0]

    rounds.play(without_device_0)
    assert replied_devices(rounds.strategy) == [1, 2, 3, 4]
    assert [config["device"] for config in rounds.sent("train")] == [0, 1, 2, 3, 4, 1]


KEEPING = {"rounds": RoundsConf(count=3, local_steps=4, lr=0.05, keep_momentum=True)}


@pytest.mark.parametrize("lost", [0, 2, 4])
@pytest.mark.parametrize("options", [KEEPING, {"codec": "int8"}], ids=["momentum", "residual"])
def test_devices_that_share_a_message_are_all_asked_again_and_left_unchanged_before(
    tmp_path, options, lost
):
    healed, whole = (
        Rounds(tmp_path / name, 2, devices_per_node=5, **options) for name in ("0", "1")
    )
    for rounds in (healed, whole):
        rounds.play()
    healed.lose(lost)
    for rounds in (healed, whole):
        rounds.play()
    configs = healed.sent("train")
    assert [config["devices"] for config in configs] == [[0, 2, 4], [1, 3], [0, 2, 4]]
    assert ["mimic" in config for config in configs] == [False, False, True]
    assert replied_devices(healed.strategy) == [0, 2, 4, 1, 3]
    assert_equal_arrays(healed.arrays, whole.arrays)


def test_lost_exemplars_come_again_with_the_mimic(tmp_path):
    rounds = Rounds(tmp_path, exemplars=4)
    rounds.play()
    marker = next(
        path
        for path in (tmp_path / "devices" / "3").iterdir()
        if path.name == rounds.sent("train", 1)[3]["exemplars-sha256"]
    )
    marker.unlink()
    rounds.play()
    again = rounds.sent("train")[-1]
    assert again["device"] == 3
    assert ("mimic" in again, "exemplars" in again) == (True, True)


def test_under_privacy_the_round_is_skipped_and_the_next_one_heals(tmp_path):
    # A wrapper does not hand over a round with an error, whose late reply it could not clip.
    strategy = tiny_strategy(norm="group")
    private = DifferentialPrivacyClientSideFixedClipping(
        strategy, noise_multiplier=0.0, clipping_norm=1e6, num_sampled_clients=5
    )
    app = tiny_app(tmp_path, "group", [fixedclipping_mod])
    grid = LocalGrid(app, 5, reports_errors=True)
    states = []

    def keep_and_lose(server_round, arrays):
        states.append(tiny_state(arrays, "group")["0.weight"])
        if server_round == 1:
            shutil.rmtree(tmp_path / "devices" / "3")

    private.start(grid, strategy.initial_arrays(), num_rounds=3, evaluate_fn=keep_and_lose)
    assert torch.equal(states[2], states[1])
    assert not torch.equal(states[3], states[2])
    trained = [m.content["config"] for m in grid.sent if m.metadata.message_type == "train"]
    again = [c for c in trained if c["server-round"] > 1 and "mimic" in c]
    assert [(c["server-round"], c["device"]) for c in again] == [(3, 3)]
