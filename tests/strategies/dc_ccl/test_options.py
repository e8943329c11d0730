"""Options of the strategy beyond the published rule, each against a calculation by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from local_grid import LocalGrid
from safetensors.torch import load as load_safetensors
from tiny import (
    device_loader,
    replied_devices,
    run_tiny,
    tiny_app,
    tiny_cloud,
    tiny_model,
    tiny_state,
    tiny_strategy,
)
from torch.nn import functional

from dccl_flower.checkpoint import to_bytes
from dccl_flower.data.batches import endless
from dccl_flower.image_config import DistilConf, PretrainConf
from dccl_flower.image_config import TwoSidedRoundsConf as RoundsConf
from dccl_flower.learning.fusion import Copy, Fusion, average
from dccl_flower.seeds import isolated_rng, torch_generator

AVERAGE = Fusion()
PARAMETERS = [name for name, _ in tiny_model(3).named_parameters()]


def some_rounds(**options):
    return RoundsConf(**{"count": 3, "local_steps": 4, "lr": 0.05, **options})


def train_messages(grid, server_round):
    messages = [m for m in grid.sent if m.metadata.message_type == "train"]
    return [m for m in messages if m.content["config"]["server-round"] == server_round]


def assert_equal_states(left, right):
    assert list(left) == list(right)
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


class Watched:
    """Run a strategy and keep what each round starts from, fuses, and ends with."""

    def __init__(self, store, num_rounds=2, fusion=AVERAGE, **options):
        self.states, self.fused, self.copies, self.cloud_calls = [], [], [], []
        options.setdefault("rounds", some_rounds())
        cloud = tiny_cloud()
        train_co = cloud.train_co

        def watch_training(*arguments):
            self.cloud_calls.append(arguments)
            return train_co(*arguments)

        class Watching(Fusion):
            def __call__(_, cloud_copy, devices, cloud_weight):
                self.copies.append((cloud_copy, devices))
                rule = replace(fusion, head="3")
                self.fused.append(rule(cloud_copy, devices, cloud_weight))
                return self.fused[-1]

        cloud.train_co = watch_training
        self.strategy, self.grid, _ = run_tiny(
            store,
            num_rounds=num_rounds,
            cloud=cloud,
            fusion=Watching(fusion.class_wise_head, fusion.pooled_statistics),
            evaluate_fn=lambda _, arrays: self.states.append(tiny_state(arrays)),
            **options,
        )


def mean_gradients(watched, server_round, reach):
    """Return what each side's change amounts to as a mean gradient, by parameter."""
    start = watched.states[server_round - 1]
    cloud, devices = watched.copies[server_round - 1]
    ends = (cloud.state, average(None, devices, 0))
    return [{name: (start[name] - end[name]) / reach for name in PARAMETERS} for end in ends]


def test_scaffold_corrects_both_sides_to_their_mean_from_the_second_round(tmp_path):
    rounds = some_rounds(local_steps=2, momentum=0.5, cloud_weight=0.25, lr_schedule="constant")
    rounds.scaffold = True
    watched = Watched(tmp_path, rounds=rounds)
    first, second = (train_messages(watched.grid, n) for n in (1, 2))
    assert all("beside.correction" not in m.content["config"] for m in first)
    blobs = {m.content["config"]["beside.correction"] for m in second}
    assert (len(second), len(blobs)) == (5, 1)
    # Two steps of a constant gradient with momentum 0.5 go 1 and 1.5 of a plain one.
    cloud, devices = mean_gradients(watched, 1, reach=0.05 * 2.5)
    for_devices = load_safetensors(blobs.pop())
    for_cloud = watched.cloud_calls[1][4]
    assert list(for_cloud) == PARAMETERS
    assert set(for_devices) == set(PARAMETERS)
    for name in PARAMETERS:
        mean = 0.25 * cloud[name] + 0.75 * devices[name]
        torch.testing.assert_close(for_cloud[name], mean - cloud[name])
        torch.testing.assert_close(for_devices[name], mean - devices[name])


def test_corrections_are_counted_on_the_ledger(tmp_path):
    watched = Watched(tmp_path, rounds=some_rounds(scaffold=True))
    blob = train_messages(watched.grid, 2)[0].content["config"]["beside.correction"]
    assert watched.strategy.ledger.totals["correction_down"] == 5 * len(blob)


def test_scaffold_changes_the_second_round_and_not_the_first(tmp_path):
    plain = Watched(tmp_path / "0")
    corrected = Watched(tmp_path / "1", rounds=some_rounds(scaffold=True))
    assert_equal_states(corrected.states[1], plain.states[1])
    assert not torch.equal(corrected.states[2]["3.weight"], plain.states[2]["3.weight"])


def test_without_scaffold_nobody_is_corrected(tmp_path):
    watched = Watched(tmp_path)
    configs = [m.content["config"] for m in train_messages(watched.grid, 2)]
    assert all("beside.correction" not in config for config in configs)
    assert [arguments[4] for arguments in watched.cloud_calls] == [{}, {}]


def test_without_server_momentum_a_round_ends_with_what_was_fused(tmp_path):
    watched = Watched(tmp_path, num_rounds=3)
    for state, fused in zip(watched.states[1:], watched.fused, strict=True):
        assert_equal_states(state, fused)


def test_server_momentum_goes_on_in_the_direction_of_earlier_rounds(tmp_path):
    watched = Watched(tmp_path, num_rounds=3, rounds=some_rounds(server_momentum=0.9))
    state, velocity = watched.states[0], dict.fromkeys(PARAMETERS, torch.zeros(()))
    for server_round, fused in enumerate(watched.fused, 1):
        reached = watched.states[server_round]
        for name in PARAMETERS:
            velocity[name] = fused[name] - state[name] + 0.9 * velocity[name]
            torch.testing.assert_close(reached[name], state[name] + velocity[name])
        assert torch.equal(reached["1.running_mean"], fused["1.running_mean"])
        assert torch.equal(reached["1.running_var"], fused["1.running_var"])
        state = reached
    assert not torch.allclose(watched.states[2]["3.weight"], watched.fused[1]["3.weight"])


def test_fused_statistics_are_those_of_one_mixture_and_reach_every_side(tmp_path):
    rounds = some_rounds(freeze_statistics_after=0.0, max_grad_norm=1.0)
    pooled = Fusion(pooled_statistics=True)
    watched = Watched(tmp_path, rounds=rounds, statistics="fused", fusion=pooled)
    cloud, devices = watched.copies[0]
    total = sum(copy.count for copy in devices)
    sides = [(0.5, cloud.state), *((0.5 * copy.count / total, copy.state) for copy in devices)]
    mean = sum(share * state["1.running_mean"] for share, state in sides)
    spread = [state["1.running_var"] + (state["1.running_mean"] - mean) ** 2 for _, state in sides]
    variance = sum(share * each for (share, _), each in zip(sides, spread, strict=True))
    plain = average(cloud, devices, 0.5)
    received = [tiny_state(m.content["arrays"]) for m in train_messages(watched.grid, 2)]
    assert len(received) == 5
    for state in (*received, watched.cloud_calls[1][0]):
        torch.testing.assert_close(state["1.running_mean"], mean)
        torch.testing.assert_close(state["1.running_var"], variance)
        assert (state["1.running_var"] > plain["1.running_var"]).all()
    assert [m.content["config"]["statistics"] for m in train_messages(watched.grid, 1)] == (
        ["fused"] * 5
    )


def test_batch_statistics_serve_until_the_late_ones_take_over(tmp_path):
    rounds = some_rounds(freeze_statistics_after=0.34)
    watched = Watched(tmp_path, num_rounds=3, rounds=rounds, statistics="frozen")
    sent = [train_messages(watched.grid, n)[0].content["config"]["statistics"] for n in (1, 2, 3)]
    assert sent == ["batch", "frozen", "frozen"]
    assert [arguments[2].statistics for arguments in watched.cloud_calls] == sent


def test_a_class_wise_head_gets_the_classes_of_devices_and_cloud(tmp_path):
    watched = Watched(tmp_path, 1, fusion=Fusion(class_wise_head=True))
    cloud, devices = watched.copies[0]
    assert cloud.class_counts.tolist() == [20, 20, 0]
    # Device d holds 12 + 3 d samples, every third of class 0 and the others of class 2.
    counts = [copy.class_counts.tolist() for copy in devices]
    assert counts == [[4, 0, 8], [5, 0, 10], [6, 0, 12], [7, 0, 14], [8, 0, 16]]
    fused, plain = watched.states[1], average(cloud, devices, 0.5)
    of_devices = average(None, devices, 0)
    for name in ("3.weight", "3.bias"):
        row0 = (cloud.state[name][0] / 2 + of_devices[name][0] / 3) / (1 / 2 + 1 / 3)
        torch.testing.assert_close(fused[name][0], row0)
        torch.testing.assert_close(fused[name][1], cloud.state[name][1])
        torch.testing.assert_close(fused[name][2], of_devices[name][2])
        assert not torch.allclose(fused[name], plain[name])
    torch.testing.assert_close(fused["0.weight"], plain["0.weight"])


def test_class_counts_are_told_only_where_they_are_asked_for(tmp_path):
    told = Watched(tmp_path / "0", 1, fusion=Fusion(class_wise_head=True))
    silent = Watched(tmp_path / "1", 1)
    assert [copy.class_counts for copy in (silent.copies[0][0], *silent.copies[0][1])] == [None] * 6
    assert torch.equal(told.states[1]["0.weight"], silent.states[1]["0.weight"])
    contents = [content for reply in told.strategy.replies for content in reply.contents]
    assert len(contents) == 5
    assert all("class-counts" not in content["metrics"] for content in contents)


def test_without_control_devices_train_with_zero_logits(tmp_path):
    rounds = some_rounds(local_steps=1)
    strategy, grid, _ = run_tiny(tmp_path, num_rounds=1, control="none", rounds=rounds)
    start = tiny_state(train_messages(grid, 1)[0].content["arrays"])
    assert replied_devices(strategy) == [0, 1, 2, 3, 4]
    for device, reply in enumerate(strategy.replies):
        keys = ("train", "device", device, "round", 1)
        with isolated_rng(0, *keys, "torch"):
            batches = endless(device_loader(device), torch_generator(0, *keys))
            images, labels = next(batches)
        co = tiny_model(4)
        co.load_state_dict(start, strict=False)
        loss = functional.cross_entropy(co.train()(images), labels).item()
        (content,) = reply.contents
        assert content["metrics"]["loss"] == pytest.approx(loss)
    assert not [kind for kind in strategy.ledger.totals if "mimic" in kind or "cloud" in kind]


def test_without_control_the_rounds_do_not_depend_on_the_mimic(tmp_path):
    finals = []
    for place, lr in enumerate((0.01, 0.2)):
        options = {"pretrain": PretrainConf(epochs=1, lr=lr), "distil": DistilConf(epochs=1, lr=lr)}
        for control in ("none", "mimic"):
            cloud = tiny_cloud(control=control, **options)
            store = tmp_path / f"{control}{place}"
            result = run_tiny(store, num_rounds=2, control=control, cloud=cloud)[2]
            finals.append(tiny_state(result.arrays))
    assert_equal_states(finals[0], finals[2])
    assert not torch.equal(finals[1]["3.weight"], finals[3]["3.weight"])


def test_the_cloud_submodel_itself_can_be_the_control(tmp_path):
    strategy, grid, _ = run_tiny(tmp_path, num_rounds=1, control="cloud_submodel")
    blob = to_bytes(strategy.cloud.cloud_submodel.state_dict())
    assert train_messages(grid, 1)[0].content["config"]["cloud_submodel"] == blob
    assert strategy.ledger.totals["cloud_submodel_down"] == 5 * len(blob)
    assert "mimic_down" not in strategy.ledger.totals


def test_kept_momentum_changes_the_second_round_and_not_the_first(tmp_path):
    fresh = Watched(tmp_path / "0")
    kept = Watched(tmp_path / "1", rounds=some_rounds(keep_momentum=True))
    assert_equal_states(kept.states[1], fresh.states[1])
    for place in range(5):
        sides = [watched.copies[1][1][place].state["3.weight"] for watched in (fresh, kept)]
        assert not torch.equal(*sides)
    clouds = [watched.copies[1][0].state["3.weight"] for watched in (fresh, kept)]
    assert not torch.equal(*clouds)


def test_exemplars_are_chosen_as_told(tmp_path):
    for choice in ("random", "herded"):
        options = {"exemplars": 6, "exemplar_choice": choice}
        strategy, grid, _ = run_tiny(tmp_path / choice, num_rounds=1, **options)
        expected = to_bytes(strategy.cloud.exemplars(6, choice))
        assert train_messages(grid, 1)[0].content["config"]["exemplars"] == expected
    assert to_bytes(strategy.cloud.exemplars(6, "random")) != expected


def test_all_options_together_give_the_same_bits_on_any_number_of_nodes(tmp_path):
    rounds = some_rounds(keep_momentum=True, server_momentum=0.5, scaffold=True, max_grad_norm=1.0)
    options = {
        "rounds": rounds,
        "loss": "prior_corrected",
        "fusion": Fusion(True, True),
        "statistics": "fused",
        "head_tuning": True,
        "exemplars": 6,
        "exemplar_choice": "herded",
        "devices_per_round": 3,
    }
    finals = []
    for nodes in (1, 2, 5, 5):
        grid = LocalGrid(tiny_app(tmp_path / str(len(finals))), nodes)
        strategy = tiny_strategy(**options)
        result = strategy.start(grid, strategy.initial_arrays(), num_rounds=3)
        finals.append(tiny_state(result.arrays))
    assert all(torch.isfinite(tensor).all() for tensor in finals[0].values())
    for final in finals[1:]:
        assert_equal_states(final, finals[0])


def test_a_cloud_without_weight_tells_no_class_counts(tmp_path):
    rounds = some_rounds(cloud_weight=0.0)
    watched = Watched(tmp_path, 1, rounds=rounds, fusion=Fusion(class_wise_head=True))
    cloud, devices = watched.copies[0]
    assert (cloud, watched.cloud_calls) == (None, [])
    # Nobody holds class 1: its row is averaged as the rest is.
    expected = average(None, [Copy(copy.state, copy.count) for copy in devices], 0)
    torch.testing.assert_close(watched.states[1]["3.weight"][1], expected["3.weight"][1])
