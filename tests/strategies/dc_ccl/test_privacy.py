"""Flower's differential privacy wrappers around the strategy."""

from __future__ import annotations

import shutil

import pytest
import torch
from flwr.client.mod import secaggplus_mod
from flwr.clientapp.mod import (
    LocalDpMod,
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
)
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
)
from local_grid import LocalGrid
from tiny import run_tiny, tiny_app, tiny_state, tiny_strategy

from dccl_flower.config import PrivacyConf
from dccl_flower.flower.privacy import privately
from dccl_flower.image_config import TwoSidedRoundsConf as RoundsConf
from dccl_flower.learning.fusion import Fusion

SETTINGS = {"noise_multiplier": 0.0, "clipping_norm": 1e6, "num_sampled_clients": 5}


def run_private(store, wrapper, mods, norm="group", num_rounds=3, **options):
    strategy = tiny_strategy(norm=norm, **options)
    private = wrapper(strategy)
    grid = LocalGrid(tiny_app(store, norm, mods), 5)
    return private.start(grid, strategy.initial_arrays(), num_rounds=num_rounds)


def fixed(strategy):
    return DifferentialPrivacyClientSideFixedClipping(strategy, **SETTINGS)


def test_clipping_that_never_bites_and_no_noise_change_nothing(tmp_path):
    _, _, plain = run_tiny(tmp_path / "0", num_rounds=3, norm="group")
    private = run_private(tmp_path / "1", fixed, [fixedclipping_mod])
    before, after = (tiny_state(result.arrays, "group") for result in (plain, private))
    assert list(before) == list(after)
    for name, tensor in before.items():
        torch.testing.assert_close(tensor, after[name], atol=1e-5, rtol=0)


def test_a_tight_clipping_norm_bounds_what_devices_send(tmp_path):
    def tight(strategy):
        return DifferentialPrivacyClientSideFixedClipping(
            strategy, noise_multiplier=0.0, clipping_norm=1e-3, num_sampled_clients=5
        )

    strategy = tiny_strategy(norm="group")
    grid = LocalGrid(tiny_app(tmp_path, "group", [fixedclipping_mod]), 5)
    start = tiny_state(strategy.initial_arrays(), "group")
    tight(strategy).start(grid, strategy.initial_arrays(), num_rounds=1)
    for reply in strategy.replies:
        squares = [((reply.answer.state[n] - start[n]) ** 2).sum() for n in start]
        assert sum(squares).sqrt() <= 1.01e-3


def test_adaptive_client_side_clipping_composes(tmp_path):
    def adaptive(strategy):
        return DifferentialPrivacyClientSideAdaptiveClipping(
            strategy, noise_multiplier=0.1, num_sampled_clients=5
        )

    result = run_private(tmp_path, adaptive, [adaptiveclipping_mod])
    finals = tiny_state(result.arrays, "group").values()
    assert all(torch.isfinite(tensor).all() for tensor in finals)


def test_server_side_clipping_composes_without_batch_statistics(tmp_path):
    def server_side(strategy):
        return DifferentialPrivacyServerSideFixedClipping(
            strategy, noise_multiplier=0.01, clipping_norm=1.0, num_sampled_clients=5
        )

    result = run_private(tmp_path, server_side, [])
    finals = tiny_state(result.arrays, "group").values()
    assert all(torch.isfinite(tensor).all() for tensor in finals)


def test_batch_statistics_are_refused_under_privacy(tmp_path):
    with pytest.raises(ValueError, match="group norm"):
        run_private(tmp_path, fixed, [fixedclipping_mod], norm="batch")


def test_head_tuning_is_refused_under_privacy(tmp_path):
    with pytest.raises(ValueError, match=r"^a second exchange: not with differential privacy"):
        run_private(tmp_path, fixed, [fixedclipping_mod], head_tuning=True)


def test_head_tuning_is_refused_under_server_side_noise_once_it_shows(tmp_path):
    def server_side(strategy):
        return DifferentialPrivacyServerSideFixedClipping(
            strategy, noise_multiplier=0.5, clipping_norm=1.0, num_sampled_clients=5
        )

    with pytest.raises(ValueError, match=r"^a second exchange: not with differential privacy"):
        run_private(tmp_path, server_side, [], head_tuning=True)


def test_raw_head_gradients_never_pass_by_the_mods(tmp_path):
    strategy = tiny_strategy(norm="group", head_tuning=True)
    grid = LocalGrid(tiny_app(tmp_path, "group", [local_dp_mod]), 5)
    with pytest.raises(ValueError, match=r"^a second exchange: not with differential privacy"):
        strategy.start(grid, strategy.initial_arrays(), num_rounds=1)


def local_dp_mod(message, context, call_next):
    """A mod that leaves no trace in the config, as local differential privacy does."""
    return call_next(message, context)


def test_class_counts_are_refused_under_privacy(tmp_path):
    with pytest.raises(
        ValueError, match=r"^class-counts of devices: not with differential privacy"
    ):
        run_private(tmp_path, fixed, [fixedclipping_mod], fusion=Fusion(class_wise_head=True))


def test_class_counts_are_refused_under_server_side_noise_once_it_shows(tmp_path):
    def server_side(strategy):
        return DifferentialPrivacyServerSideFixedClipping(
            strategy, noise_multiplier=0.5, clipping_norm=1.0, num_sampled_clients=5
        )

    with pytest.raises(ValueError, match=r"^class-counts of devices"):
        run_private(tmp_path, server_side, [], fusion=Fusion(class_wise_head=True))


def test_a_correction_from_copies_without_noise_is_refused_under_privacy(tmp_path):
    with pytest.raises(ValueError, match=r"^correction of devices: not with differential privacy"):
        run_private(tmp_path, fixed, [fixedclipping_mod], rounds=RoundsConf(scaffold=True))


LEFT = [{"codec": "int8"}, {"codec": "fp16"}, {"devices_per_node": 2}, {"norm": "batch"}]
LEFT += [{"fusion": Fusion(class_wise_head=True)}]


@pytest.mark.parametrize("options", LEFT)
def test_mods_and_wrappers_that_leave_no_trace_are_met_before_anybody_trains(tmp_path, options):
    norm = options.pop("norm", "group")
    strategy = tiny_strategy(norm=norm, **options)
    local = LocalGrid(tiny_app(tmp_path, norm, [LocalDpMod(1.0, 1.0, 1.0, 1e-5)]), 5)
    with pytest.raises(ValueError, match="with differential privacy"):
        strategy.start(local, strategy.initial_arrays(), num_rounds=1)
    strategy = tiny_strategy(norm=norm, **options)
    grid = LocalGrid(tiny_app(tmp_path, norm), 5)
    wrapped = DifferentialPrivacyServerSideFixedClipping(strategy, **SETTINGS)
    with pytest.raises(ValueError, match="with differential privacy"):
        wrapped.start(grid, strategy.initial_arrays(), num_rounds=1)
    types = {m.metadata.message_type for m in (*local.sent, *grid.sent)}
    assert types <= {"query.node", "query.holds"}


def test_flowers_meters_are_no_privacy(tmp_path):
    strategy = tiny_strategy(codec="fp16")
    grid = LocalGrid(tiny_app(tmp_path, train_mods=[arrays_size_mod]), 5)
    strategy.start(grid, strategy.initial_arrays(), num_rounds=1)
    assert strategy.is_private is False


def test_what_the_server_clips_is_not_asked_for_again(tmp_path):
    strategy = tiny_strategy(norm="group")
    grid = LocalGrid(tiny_app(tmp_path, "group"), 5, reports_errors=True)

    def forget(message):
        if message.metadata.message_type == "train" and message.content["config"]["device"] == 3:
            shutil.rmtree(tmp_path / "devices" / "3", ignore_errors=True)
            message.content["config"].pop("mimic", None)

    grid.before_answer = forget
    private = privately(strategy, PrivacyConf(dp="server_fixed"), 5, seed=0)
    with pytest.raises(
        AggregationError, match=r"^round 1: 4 of 5 devices answered, .*device 3 does not hold"
    ):
        private.start(grid, strategy.initial_arrays(), num_rounds=1)


def test_secure_aggregation_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^secaggplus_mod: only the workflow of Flower's older"):
        tiny_app(tmp_path, train_mods=[secaggplus_mod])


SHARED = [({"codec": "fp16"}, "codec=fp16"), ({"codec": "int8"}, "codec=int8")]
SHARED += [({"devices_per_node": 2}, "devices_per_node=2")]


@pytest.mark.parametrize(("options", "named"), SHARED)
def test_what_hides_a_device_s_exact_update_is_refused_under_privacy(tmp_path, options, named):
    with pytest.raises(ValueError, match=f"^{named}: not with differential privacy"):
        run_private(tmp_path, fixed, [fixedclipping_mod], **options)


@pytest.mark.parametrize(("options", "named"), SHARED)
def test_what_hides_an_update_is_fine_without_privacy(tmp_path, options, named):
    strategy, _, _ = run_tiny(tmp_path, num_rounds=2, norm="group", **options)
    assert [device for reply in strategy.replies for device in reply.devices] == [0, 1, 2, 3, 4]
