"""How a device keeps the control's logits of its own images from turn to turn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from image_device import Counted, image_loader, image_model, image_state
from messages import decode, encode, train_config, with_exemplars
from torch.utils.data import DataLoader, TensorDataset

from dccl_flower import DcCclClient
from dccl_flower.checkpoint import to_bytes
from dccl_flower.data.loader import ImageLoader
from dccl_flower.learning.evaluate import predict

STEPS, SAMPLES = 5, 11


def blob_of(seed):
    return to_bytes(Counted(image_model(seed)).state_dict())


MIMIC, OTHER = blob_of(1), blob_of(2)
EXEMPLARS = to_bytes({"images": torch.zeros(2, 1, 4, 4), "labels": torch.tensor([0, 1])})


def own_images(device):
    return image_loader(range(20 * device, 20 * device + SAMPLES))


def augmented_images(device):
    return image_loader(range(20 * device, 20 * device + SAMPLES), augment="flip_crop")


def in_memory(device):
    """Return a plain DataLoader of a device's images."""
    images = torch.cat([images for images, _ in own_images(device)])
    return DataLoader(TensorDataset(images, own_images(device).targets), 4, shuffle=True)


def a_config(mimic=MIMIC, exemplars=None, **more):
    config = train_config(mimic, recipe={"steps": STEPS, "momentum": 0.9}, **more)
    return config if exemplars is None else with_exemplars(config, exemplars)


class Turns:
    """Turns on one store; each is a client of its own, as in a deployment."""

    def __init__(self, store, load_data=own_images, cache=True):
        self.store, self.load_data, self.cache = store, load_data, cache

    def play(self, server_round=1, device=0, load_data=None, **more):
        """Return the trained state, the metrics, and the batches that the control was asked for."""
        control = Counted(image_model(9))
        client = self.client(control, load_data)
        config = a_config(device=device, server_round=server_round, **more)
        arrays, _, metrics = client.fit(encode("fp32", image_state(3)), config)
        del metrics["peak-rss-mb"], metrics["server-round"]
        return decode("fp32", arrays, image_state(3)), metrics, control.batches

    def play_together(self, devices):
        """Return the batches that the control was asked for by devices that share a message."""
        control = Counted(image_model(9))
        config = a_config(device=devices)
        self.client(control).fit(encode("fp32", image_state(3)), config)
        return control.batches

    def client(self, control, load_data=None):
        load_data = load_data or self.load_data
        return DcCclClient(image_model(3), control, load_data, self.store, "cpu", self.cache)

    def files(self, device=0):
        return sorted((self.store / "own" / str(device)).glob("logits-*"))


def assert_close(left, right):
    for name, tensor in left[0].items():
        torch.testing.assert_close(tensor, right[0][name], rtol=0, atol=1e-6)
    assert left[1] == pytest.approx(right[1], abs=1e-6)


def assert_apart(left, right):
    assert not torch.allclose(left[0]["1.weight"], right[0]["1.weight"], atol=1e-3)


def test_turns_come_to_the_same_with_and_without_the_kept_logits(tmp_path):
    kept, plain = Turns(tmp_path / "0"), Turns(tmp_path / "1", cache=False)
    for server_round in (1, 2, 3):
        for device in (0, 1):
            assert_close(kept.play(server_round, device), plain.play(server_round, device))
    assert plain.files() == plain.files(1) == []


def test_the_control_is_asked_once_for_all_images_and_never_again(tmp_path):
    turns = Turns(tmp_path)
    asked = [turns.play(server_round)[2] for server_round in (1, 2, 3)]
    assert asked == [[SAMPLES], [], []]
    assert len(turns.files()) == 1


def test_without_the_cache_the_control_is_asked_each_step(tmp_path):
    # Eleven images make epochs of three batches.
    _, _, asked = Turns(tmp_path, cache=False).play()
    assert asked == [4, 4, 3, 4, 4]


def test_each_device_keeps_the_logits_of_its_own_images(tmp_path):
    turns, alone = Turns(tmp_path / "0"), Turns(tmp_path / "1")
    for device in (0, 1):
        assert turns.play(device=device)[2] == [SAMPLES]
    for device in (1, 0):
        kept = turns.play(server_round=2, device=device)
        assert kept[2] == []
        assert_close(kept, alone.play(server_round=2, device=device))
    assert [len(turns.files(device)) for device in (0, 1, 2)] == [1, 1, 0]


def test_another_mimic_is_asked_anew_and_the_first_is_still_known(tmp_path):
    turns, plain = Turns(tmp_path / "0"), Turns(tmp_path / "1", cache=False)
    first, other = turns.play(), turns.play(mimic=OTHER)
    assert (first[2], other[2]) == ([SAMPLES], [SAMPLES])
    assert_apart(first, other)
    for mimic in (MIMIC, OTHER):
        again = turns.play(mimic=mimic)
        assert again[2] == []
        assert_close(again, plain.play(mimic=mimic))


def test_other_images_of_the_same_device_are_asked_for_anew(tmp_path):
    turns, plain = Turns(tmp_path / "0"), Turns(tmp_path / "1", cache=False)
    turns.play()
    loader = own_images(0)
    upside_down = np.array(loader.rows[::-1])
    for rows in (upside_down, loader.rows[:-2], loader.rows + 100):
        changed = image_loader(rows)
        assert_close(
            turns.play(load_data=lambda _, other=changed: other),
            plain.play(load_data=lambda _, other=changed: other),
        )
    assert len(turns.files()) == 4
    brighter = ImageLoader(
        loader.images, loader.rows, loader.targets, 4, loader.mean, 2 * loader.std
    )
    turns.play(load_data=lambda _: brighter)
    assert len(turns.files()) == 5


def test_other_labels_of_the_same_images_need_no_other_logits(tmp_path):
    turns, plain = Turns(tmp_path / "0"), Turns(tmp_path / "1", cache=False)
    turns.play()
    relabelled = own_images(0).with_targets((own_images(0).targets + 1) % 3)
    again = turns.play(load_data=lambda _: relabelled)
    assert again[2] == []
    assert_close(again, plain.play(load_data=lambda _: relabelled))


@pytest.mark.parametrize("load_data", [in_memory, augmented_images])
def test_images_that_change_or_are_not_known_by_position_are_left_alone(tmp_path, load_data):
    turns, plain = Turns(tmp_path / "0", load_data), Turns(tmp_path / "1", load_data, cache=False)
    for server_round in (1, 2):
        state, metrics, asked = turns.play(server_round)
        assert len(asked) == STEPS
        expected, expected_metrics, _ = plain.play(server_round)
        assert metrics == expected_metrics
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert turns.files() == []


def test_beside_exemplars_the_control_is_asked_each_step(tmp_path):
    turns = Turns(tmp_path)
    assert turns.play(exemplars=EXEMPLARS)[2] == [8, 8, 6, 8, 8]
    assert turns.files() == []


def test_what_is_kept_are_the_mimic_s_logits_in_the_order_of_the_images(tmp_path):
    turns = Turns(tmp_path)
    turns.play()
    (path,) = turns.files()
    kept = path.read_bytes()
    expected, _ = predict(image_model(1), own_images(0))
    assert len(kept) < 4 * 3 * SAMPLES + 150  # a header and a SHA-256
    logits = torch.frombuffer(bytearray(kept[-4 * 3 * SAMPLES :]), dtype=torch.float32)
    torch.testing.assert_close(logits.view(SAMPLES, 3), expected, rtol=0, atol=1e-6)


def test_devices_of_one_message_keep_their_own_logits_too(tmp_path):
    turns, alone = Turns(tmp_path / "0"), Turns(tmp_path / "1")
    assert turns.play_together([1, 0]) == [SAMPLES, SAMPLES]
    assert turns.play_together([0, 1, 2]) == [SAMPLES]
    for device in (0, 1, 2):
        alone.play(device=device)
        (kept,), (expected,) = turns.files(device), alone.files(device)
        assert kept.name == expected.name
        assert kept.read_bytes() == expected.read_bytes()
