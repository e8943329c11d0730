"""Runs by codec: what they learn, what they cost, and that fp32 costs no bit."""

from __future__ import annotations

import pytest
import torch
from local_grid import LocalGrid
from tiny import (
    device_loader,
    replied_devices,
    run_tiny,
    tiny_cloud,
    tiny_loader,
    tiny_model,
    tiny_samples,
    tiny_state,
)
from torch import nn
from torch.nn import functional

from dccl_flower import Cloud, DcCclClient, numpy_client_app
from dccl_flower.codecs import CODECS
from dccl_flower.data.batches import endless
from dccl_flower.device import Memory
from dccl_flower.device_store import DeviceStore
from dccl_flower.flower.wire import to_state
from dccl_flower.image_config import DistilConf, PretrainConf
from dccl_flower.image_config import TwoSidedRoundsConf as RoundsConf
from dccl_flower.learning.controlled import round_recipe, train_controlled
from dccl_flower.learning.evaluate import accuracy
from dccl_flower.learning.fusion import Copy, average
from dccl_flower.models.frozen import exchanged_state, load_exchanged
from dccl_flower.seeds import isolated_rng, torch_generator
from dccl_flower.strategies import DcCcl
from dccl_flower.strategies.exchange import copies_of

NAMES = ("fp32", "fp16", "int8")


def deep_model(seed):
    """Return a net most of whose numbers stand in matrices, as in those that codecs are for."""
    with isolated_rng(seed, "deep"):
        layers = (nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 3))
        return nn.Sequential(*layers)


class DeepRun:
    """Five rounds of a net of nine thousand numbers on three devices of class 2."""

    def __init__(self, store, codec):
        cloud = Cloud(
            deep_model(1),
            deep_model(2),
            deep_model(3),
            tiny_loader([0, 1], 40, seed=5),
            pretrain=PretrainConf(epochs=2, lr=0.05),
            distil=DistilConf(epochs=2, lr=0.01),
        )
        app = numpy_client_app(
            lambda context: DcCclClient(deep_model(4), deep_model(5), device_loader, store)
        )
        rounds = RoundsConf(count=5, local_steps=4, lr=0.05)
        self.strategy = DcCcl(cloud, num_devices=3, rounds=rounds, codec=codec)
        start = self.strategy.initial_arrays()
        grid = LocalGrid(app, 3)
        self.result = self.strategy.start(grid, start, num_rounds=5)
        self.start, self.final = map(self.strategy.co_state, (start, self.result.arrays))

    def accuracy(self, state):
        """Return the accuracy of cloud submodel and co-submodel on points of all classes."""
        co = deep_model(4)
        load_exchanged(co, state)
        points, labels = tiny_samples([0, 1, 2], 90, seed=9)
        with torch.no_grad():
            logits = self.strategy.cloud.cloud_submodel.eval()(points) + co(points)
        return accuracy(logits, labels)

    def wire(self, kind):
        return self.strategy.ledger.totals[kind]


@pytest.fixture(scope="module")
def deep_runs(tmp_path_factory):
    return {codec: DeepRun(tmp_path_factory.mktemp(codec), codec) for codec in NAMES}


@pytest.mark.parametrize("codec", NAMES)
def test_a_run_learns_what_devices_alone_hold(deep_runs, codec):
    run = deep_runs[codec]
    assert run.accuracy(run.final) > 0.9 > 0.75 > run.accuracy(run.start)
    losses = [run.result.train_metrics_clientapp[n]["loss"] for n in (1, 5)]
    assert losses[1] < losses[0] / 2


@pytest.mark.parametrize(("codec", "largest"), [("fp16", 2e-3), ("int8", 2e-2)])
def test_a_coarse_run_ends_near_the_exact_one_and_not_there(deep_runs, codec, largest):
    exact, coarse = (deep_runs[name].final for name in ("fp32", codec))
    gaps = [(coarse[name] - tensor).abs().max().item() for name, tensor in exact.items()]
    moved = max((exact[n] - t).abs().max().item() for n, t in deep_runs["fp32"].start.items())
    assert 0 < max(gaps) < largest < moved / 5


@pytest.mark.parametrize("kind", ["co_down", "co_up"])
def test_a_half_and_a_quarter_of_the_bytes_cross_the_wire(deep_runs, kind):
    full, half, quarter = (deep_runs[codec].wire(kind) for codec in NAMES)
    numbers = sum(tensor.numel() for tensor in deep_model(3).state_dict().values())
    # Three devices and five rounds; an array has a header of 128 bytes and a key.
    assert full == 15 * (4 * numbers + 128 + 1)
    assert half == 15 * (2 * numbers + 128 + 1)
    vectors = 64 + 128 + 3
    assert quarter == 15 * (numbers - vectors + 4 * (vectors + 3) + 3 * (128 + 1))
    assert quarter / full == pytest.approx(0.25, abs=0.03)


def test_the_mimic_costs_the_same_by_every_codec(deep_runs):
    assert len({run.wire("mimic_down") for run in deep_runs.values()}) == 1


@pytest.mark.parametrize("codec", NAMES)
def test_residuals_are_kept_for_each_device_by_int8_alone(tmp_path, codec):
    options = {"codec": codec, "devices_per_round": 2, "seed": 1}
    strategy, _, _ = run_tiny(tmp_path, num_nodes=2, num_rounds=1, **options)
    took_part = replied_devices(strategy)
    kept = {int(path.parts[-3]): path for path in tmp_path.glob("own/*/*/residual")}
    assert sorted(kept) == (took_part if codec == "int8" else [])
    store = DeviceStore(tmp_path)
    residuals = [Memory(store, d, kept[d].parts[-2], (9, 0)).kept("residual") for d in sorted(kept)]
    assert all(set(residual) == {"0.weight", "3.weight"} for residual in residuals)
    if codec == "int8":
        left, right = (residual["3.weight"] for residual in residuals)
        assert not torch.equal(left, right)


def test_a_message_is_by_the_codec_and_the_server_goes_on_in_full_precision(tmp_path):
    _, grid, result = run_tiny(tmp_path, num_rounds=2, codec="int8")
    trains = [m.content for m in grid.sent if m.metadata.message_type == "train"]
    assert {content["config"]["codec"] for content in trains} == {"int8"}
    types = [array.numpy().dtype for array in trains[0]["arrays"].values()]
    assert types == ["int8", "float32", "float32"]
    assert [array.numpy().dtype for array in result.arrays.values()] == ["float32"]


def by_hand(strategy, state, device):
    """Return what a device makes of a state in the first round, without any wire."""
    co, keys = tiny_model(4), ("train", "device", device, "round", 1)
    load_exchanged(co, state)
    with isolated_rng(0, *keys, "torch"):
        batches = endless(device_loader(device), torch_generator(0, *keys))
        control, recipe = strategy.cloud.mimic, round_recipe(strategy.method.rounds, 1)
        train_controlled(co, control, batches, functional.cross_entropy, recipe)
    return {name: tensor.clone() for name, tensor in exchanged_state(co).items()}


def test_fp32_is_to_the_bit_the_average_without_any_wire(tmp_path):
    strategy, _, result = run_tiny(tmp_path, num_rounds=1, codec="fp32")
    start = exchanged_state(tiny_model(3))
    copies = [Copy(by_hand(strategy, start, d), 12 + 3 * d) for d in range(5)]
    cloud = Copy(
        strategy.cloud.train_co(start, "ce", round_recipe(strategy.method.rounds, 1), 1), 0
    )
    expected, final = average(cloud, copies, 0.5), tiny_state(result.arrays)
    assert list(final) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(final[name], tensor), name


def test_fp32_is_the_codec_of_those_who_name_none(tmp_path):
    named, unnamed = (
        run_tiny(tmp_path / str(place), num_rounds=2, **options)[2]
        for place, options in enumerate([{"codec": "fp32"}, {}])
    )
    for name, tensor in tiny_state(named.arrays).items():
        assert torch.equal(tiny_state(unnamed.arrays)[name], tensor), name


def test_an_int8_round_is_the_average_of_rounded_changes_to_the_exact_state(tmp_path):
    strategy, grid, result = run_tiny(tmp_path, num_rounds=1, codec="int8")
    start = exchanged_state(tiny_model(3))
    sent = next(m.content["arrays"] for m in grid.sent if "arrays" in m.content)
    received = to_state(sent, start, CODECS["int8"])
    assert not torch.equal(received["0.weight"], start["0.weight"])
    copies = []
    for device, reply in enumerate(strategy.replies):
        trained = by_hand(strategy, received, device)
        change = {name: trained[name] - received[name] for name in start}
        for name in ("0.weight", "3.weight"):
            scale = change[name].abs().max() / 127
            rounded = (change[name] / scale).round() * scale
            torch.testing.assert_close(
                reply.answer.state[name], start[name] + rounded, rtol=0, atol=1e-6
            )
        for name in ("0.bias", "1.weight", "1.running_var", "3.bias"):
            assert torch.equal(reply.answer.state[name], trained[name])
        copies += copies_of([reply.answer])
    cloud = Copy(
        strategy.cloud.train_co(start, "ce", round_recipe(strategy.method.rounds, 1), 1), 0
    )
    final = tiny_state(result.arrays)
    for name, tensor in average(cloud, copies, 0.5).items():
        assert torch.equal(final[name], tensor), name


@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_a_codec_gives_the_same_bits_on_any_number_of_nodes(tmp_path, codec):
    finals = []
    for nodes in (1, 3):
        options = {"num_nodes": nodes, "codec": codec, "head_tuning": True, "num_rounds": 2}
        _, _, result = run_tiny(tmp_path / str(nodes), fraction_evaluate=0.4, **options)
        assert 0 <= result.evaluate_metrics_clientapp[2]["accuracy"] <= 1
        finals.append(tiny_state(result.arrays))
    assert all(torch.equal(tensor, finals[1][name]) for name, tensor in finals[0].items())


def test_an_unknown_codec_is_refused_at_once():
    with pytest.raises(
        ValueError, match=r"^codec='int4': expected one of fp32, fp16, int8, named$"
    ):
        DcCcl(tiny_cloud(), num_devices=5, codec="int4")
