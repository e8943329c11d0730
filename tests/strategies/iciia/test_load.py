from __future__ import annotations

import pytest

from dccl_flower.config_loading import load_conf
from dccl_flower.device_store import Parcel
from dccl_flower.method import find_method
from dccl_flower.models.frozen import exchanged_state
from dccl_flower.simulations.experiment import open_experiment

QUICK = ("devices.count=4", "adaptation.batch_size=8")
# small_cnn on 8x8: 64 and 64 channels, pooled, 128 and 128; then 128 features to ten classes.
IMAGE = 64 * 9 * (64 + 64 * 64) + 16 * 9 * (64 * 128 + 128 * 128) + 1280


def batch_macs(size):
    """Return the MACs of one layer of attention over so many images, and of the head."""
    return size * (6 * 128 * 128 + 1280) + 2 * size * size * 128


def loaded(*overrides):
    """Return the server, what its turn takes, and how many images a device has and meets."""
    experiment = open_experiment(load_conf("iciia_digits", [*QUICK, *overrides]))
    server = find_method("iciia").server(experiment, lambda *_: None)
    own, new = (
        sum(load(d).num_samples for d in range(4)) / 4
        for load in (experiment.device_loader, experiment.device_test_loader)
    )
    return server, server.workload()(1.0), own, new


def total(load, field):
    return sum(getattr(piece, field) for piece in load.pieces)


def parcel(module):
    return len(Parcel.of(module.state_dict()).blob())


def test_backbone_and_module_come_once_and_what_is_right_goes_up():
    server, load, _, new = loaded()
    assert load.keep_bytes == parcel(server.backbone) + parcel(server.module)
    assert load.keep_flops == pytest.approx(2 * new * IMAGE)
    assert (total(load, "down_bytes"), total(load, "up_bytes")) == (0, 3 * 8)
    assert all(not piece.down and not piece.up for piece in load.pieces)
    assert total(load, "flops") == pytest.approx(2 * new * batch_macs(8) / 8)


def test_one_by_one_each_image_is_seen_anew_beside_those_before():
    _, load, _, new = loaded("adaptation.cached=5")
    assert total(load, "flops") == pytest.approx(2 * new * batch_macs(6))


def test_federated_the_module_goes_down_and_up_and_once_more_down_to_score():
    server, load, own, new = loaded("method.training=federated", "rounds.local_steps=3")
    names = list(exchanged_state(server.module))
    assert [list(each.down) for each in load.pieces if each.down] == [names, names]
    assert [list(each.up) for each in load.pieces if each.up] == [names]
    assert load.keep_bytes == parcel(server.backbone)
    assert load.keep_flops == pytest.approx(2 * (own + new) * IMAGE)
    # Backward twice the forward pass, but that nobody asks for a gradient of the features: three
    # projections spare it.
    training = 3 * batch_macs(8) - 3 * 8 * 128 * 128
    assert total(load, "flops") == pytest.approx(3 * 2 * training + 2 * new * batch_macs(8) / 8)


def test_images_that_are_augmented_are_seen_anew_each_round():
    overrides = ("adaptation.by=fine_tuning", "adaptation.epochs=10")
    _, plain, own, new = loaded(*overrides)
    _, augmented, _, _ = loaded(*overrides, "data.augment=flip_crop")
    assert plain.keep_flops == pytest.approx(2 * (own + new) * IMAGE)
    assert augmented.keep_flops == pytest.approx(2 * new * IMAGE)
    anew = total(augmented, "flops") - total(plain, "flops")
    assert anew == pytest.approx(2 * own * IMAGE)
    # the last layer, forward and for its weights alone; then once more to serve
    assert total(plain, "flops") == pytest.approx(2 * (10 * own * 2 + new) * 1280)


@pytest.mark.parametrize("by", ["none", "oracle"])
def test_a_backbone_alone_has_nothing_beside_it(by):
    _, load, _, _ = loaded(f"adaptation.by={by}")
    assert total(load, "flops") == 0
    assert max(piece.memory for piece in load.pieces) > 0


def test_a_prompt_is_served_with_the_number_of_the_device():
    server, load, _, new = loaded("adaptation.by=prompt")
    assert total(load, "flops") == pytest.approx(2 * new * (1280 + 64 * 10))
    module, features = server.held.served()["adaptation"]
    assert module(features).shape == (8, 10)


def test_where_the_cloud_serves_a_device_does_nothing():
    _, load, _, _ = loaded("method.serves=cloud")
    assert (load.keep_bytes, total(load, "flops"), total(load, "up_bytes")) == (0, 0, 0)
