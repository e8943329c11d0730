"""One device's turn, called as Flower's adapter calls it."""

from __future__ import annotations

import pytest
import torch
from messages import (
    decode,
    encode,
    head_config,
    kept_by,
    score_config,
    train_config,
    with_exemplars,
)
from tiny import device_loader, tiny_control, tiny_model
from torch.nn import functional

from dccl_flower import DcCclClient
from dccl_flower.checkpoint import to_bytes
from dccl_flower.data.batches import endless
from dccl_flower.device_store import sha256
from dccl_flower.learning.evaluate import predict
from dccl_flower.learning.head_tuning import HeadPrivacy
from dccl_flower.models.frozen import exchanged_state
from dccl_flower.seeds import isolated_rng, torch_generator

MIMIC = to_bytes(tiny_model(6).state_dict())
NAMES = list(exchanged_state(tiny_model(3)))
PARAMETERS = [name for name, _ in tiny_model(3).named_parameters()]
EXEMPLARS = to_bytes({"images": torch.eye(2), "labels": torch.tensor([0, 1])})


def a_config(device=0, blob=MIMIC, **more):
    return train_config(blob, device, **more)


def start_arrays():
    return encode("fp32", exchanged_state(tiny_model(3)))


def state_of(arrays):
    return decode("fp32", arrays, exchanged_state(tiny_model(3)))


def fit(store, arrays=None, control="mimic", **more):
    """Return a device's state, count and metrics after its turn."""
    client = DcCclClient(tiny_model(4), tiny_control(control), device_loader, store)
    given = start_arrays() if arrays is None else [a.copy() for a in arrays]
    exemplars = more.pop("exemplars", None)
    config = a_config(**more)
    config = config if exemplars is None else with_exemplars(config, exemplars)
    arrays, count, metrics = client.fit(given, config)
    assert metrics.pop("server-round") == config["server-round"]
    return state_of(arrays), count, metrics


def arrays_of(state):
    return encode("fp32", state)


def assert_same(left, right):
    for name in NAMES:
        assert torch.equal(left[name], right[name]), name


def first_batch(device=0):
    keys = ("train", "device", device, "round", 1)
    with isolated_rng(0, *keys, "torch"):
        return next(endless(device_loader(device), torch_generator(0, *keys)))


def test_a_turn_is_a_step_on_the_sum_of_control_and_co_submodel(tmp_path):
    images, labels = first_batch()
    co, mimic = tiny_model(3).train(), tiny_model(6).eval()
    loss = functional.cross_entropy(mimic(images).detach() + co(images), labels)
    loss.backward()
    state, count, metrics = fit(tmp_path)
    assert (count, metrics["loss"]) == (12, pytest.approx(loss.item()))
    for name, parameter in co.named_parameters():
        torch.testing.assert_close(state[name], parameter.detach() - 0.1 * parameter.grad)


def test_without_control_a_turn_is_a_step_of_the_co_submodel_alone(tmp_path):
    images, labels = first_batch()
    loss = functional.cross_entropy(tiny_model(3).train()(images), labels)
    _, _, metrics = fit(tmp_path, control="none", blob=to_bytes({}))
    assert metrics["loss"] == pytest.approx(loss.item())


def test_a_correction_changes_the_result_as_adding_it_to_the_gradient_would(tmp_path):
    correction = {"0.bias": torch.arange(6.0), "3.weight": torch.full((3, 6), -0.5)}
    plain, _, _ = fit(tmp_path)
    corrected, _, _ = fit(tmp_path, beside={"correction": to_bytes(correction)})
    for name in NAMES:
        shift = 0.1 * correction.get(name, torch.zeros(()))
        torch.testing.assert_close(corrected[name], plain[name] - shift)
    assert_same(fit(tmp_path, beside={"correction": to_bytes({})})[0], plain)


def test_a_correction_is_clipped_with_the_gradient(tmp_path):
    huge = to_bytes({"0.bias": torch.full((6,), 1e6)})
    state, _, _ = fit(tmp_path, beside={"correction": huge}, recipe={"max_grad_norm": 1.0})
    start = state_of(start_arrays())
    squares = [((state[name] - start[name]) ** 2).sum() for name in PARAMETERS]
    assert sum(squares).sqrt().item() == pytest.approx(0.1, rel=1e-3)


def test_kept_momentum_is_carried_on_from_turn_to_turn(tmp_path):
    recipe = {"recipe": {"momentum": 0.9}, "keep_momentum": True}
    first, _, _ = fit(tmp_path, **recipe)
    buffers = kept_by(tmp_path, 0, "momentum")
    assert set(buffers) == set(PARAMETERS)
    fresh, _, _ = fit(tmp_path, arrays_of(first), server_round=2, recipe={"momentum": 0.9})
    second, _, _ = fit(tmp_path, arrays_of(first), server_round=2, **recipe)
    for name in PARAMETERS:
        torch.testing.assert_close(second[name], fresh[name] - 0.1 * 0.9 * buffers[name])
    assert not torch.equal(second["3.weight"], fresh["3.weight"])


def test_the_kept_buffer_is_the_last_one(tmp_path):
    recipe = {"recipe": {"momentum": 0.9}, "keep_momentum": True}
    for server_round in (1, 2):
        before = kept_by(tmp_path, 0, "momentum")
        fit(tmp_path, server_round=server_round, **recipe)
    start = state_of(start_arrays())
    plain, _, _ = fit(tmp_path, server_round=2)
    after = kept_by(tmp_path, 0, "momentum")
    for name in PARAMETERS:
        gradient = (start[name] - plain[name]) / 0.1
        expected = 0.9 * before[name] + gradient
        torch.testing.assert_close(after[name], expected, atol=1e-5, rtol=1e-5)


def test_a_device_does_not_go_on_with_the_momentum_of_another(tmp_path):
    recipe = {"recipe": {"momentum": 0.9}, "keep_momentum": True}
    alone, _, _ = fit(tmp_path / "0", device=1, **recipe)
    fit(tmp_path / "1", device=0, **recipe)
    after_another, _, _ = fit(tmp_path / "1", device=1, **recipe)
    assert_same(after_another, alone)


def test_nothing_is_kept_unless_asked_for(tmp_path):
    states = [fit(tmp_path, recipe={"momentum": 0.9})[0] for _ in range(2)]
    assert_same(*states)
    assert kept_by(tmp_path, 0, "momentum") is None
    fit(tmp_path, recipe={"momentum": 0.9}, keep_momentum=False)
    assert kept_by(tmp_path, 0, "momentum") is None


def test_class_counts_are_told_only_when_asked_for_and_change_nothing(tmp_path):
    silent_state, _, silent = fit(tmp_path)
    state, _, metrics = fit(tmp_path, tell_class_counts=True)
    assert set(silent) == {"loss", "accuracy", "peak-rss-mb"}
    assert "class-counts" not in fit(tmp_path, tell_class_counts=False)[2]
    # Of twelve samples every third is of class 0, the others of class 2.
    assert metrics["class-counts"] == [4, 0, 8]
    assert_same(state, silent_state)


def test_class_counts_are_of_the_device_s_own_samples_without_exemplars(tmp_path):
    _, count, metrics = fit(tmp_path, exemplars=EXEMPLARS, tell_class_counts=True)
    assert (count, metrics["class-counts"]) == (12, [4, 0, 8])


def test_frozen_statistics_stay_and_those_of_the_batch_move(tmp_path):
    start = state_of(start_arrays())
    frozen, _, _ = fit(tmp_path, recipe={"statistics": "frozen"})
    moved, _, _ = fit(tmp_path)
    for name in ("1.running_mean", "1.running_var"):
        assert torch.equal(frozen[name], start[name])
        assert not torch.equal(moved[name], start[name])


def test_fused_statistics_are_those_of_the_turn_s_inputs(tmp_path):
    images, _ = first_batch()
    state, _, _ = fit(tmp_path, recipe={"statistics": "fused"})
    inputs = tiny_model(3)[0](images).detach()
    torch.testing.assert_close(state["1.running_mean"], inputs.mean(0))
    torch.testing.assert_close(state["1.running_var"], inputs.var(0, unbiased=False))


def test_a_device_tells_which_blobs_each_of_its_devices_holds(tmp_path):
    fit(tmp_path, device=1)
    client = DcCclClient(tiny_model(4), tiny_model(5), device_loader, tmp_path)
    asked = {"devices": [0, 1], "mimic-sha256": sha256(MIMIC)}
    assert client.get_properties(asked) == {"holds-mimic": [False, True]}
    asked = {"devices": [1], "mimic-sha256": sha256(MIMIC), "exemplars-sha256": sha256(EXEMPLARS)}
    assert client.get_properties(asked) == {"holds-mimic": [True], "holds-exemplars": [False]}


def test_a_device_scores_the_sum_of_control_and_co_submodel(tmp_path):
    # The loader shuffles: both models must see the samples in the same order all the same.
    client = DcCclClient(tiny_model(4), tiny_model(5), device_loader, tmp_path)
    loss, count, metrics = client.evaluate(start_arrays(), score_config(MIMIC, 2))
    images, labels = device_loader(2).dataset.tensors
    logits = sum(predict(tiny_model(seed), [(images, labels)])[0] for seed in (3, 6))
    assert count == 18
    assert loss == pytest.approx(functional.cross_entropy(logits, labels).item())
    assert metrics["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())


def test_parameters_are_one_flat_vector_of_floats(tmp_path):
    client = DcCclClient(tiny_model(3), tiny_model(5), device_loader, tmp_path)
    (vector,) = client.get_parameters({})
    assert (vector.dtype, vector.shape) == ("float32", (6 * 2 + 6 + 4 * 6 + 3 * 6 + 3,))
    assert_same(state_of([vector]), exchanged_state(tiny_model(3)))


def test_the_gradient_of_the_head_is_one_flat_vector(tmp_path):
    keys = ("head", "device", 0, "round", 1, 0)
    with isolated_rng(0, *keys, "torch"):
        images, labels = next(endless(device_loader(0), torch_generator(0, *keys)))
    co, mimic = tiny_model(3).eval(), tiny_model(6).eval()
    functional.cross_entropy(mimic(images).detach() + co(images), labels).backward()
    modules = (tiny_model(4), tiny_model(5))
    client = DcCclClient(*modules, device_loader, tmp_path, head_privacy=HeadPrivacy(floor=0))
    (vector,), count, _ = client.again(start_arrays(), head_config(MIMIC))
    assert count == 4
    expected = torch.cat([co[3].weight.grad.flatten(), co[3].bias.grad])
    torch.testing.assert_close(torch.from_numpy(vector), expected)


def test_a_device_that_lost_the_control_says_so_though_its_process_still_holds_it(tmp_path):
    client = DcCclClient(tiny_model(4), tiny_model(5), device_loader, tmp_path)
    client.fit(start_arrays(), a_config())
    without = {key: value for key, value in a_config().items() if key != "mimic"}
    client.fit(start_arrays(), without)
    (tmp_path / "devices" / "0" / sha256(MIMIC)).unlink()
    with pytest.raises(ValueError, match=f"^device 0 does not hold blob {sha256(MIMIC)}$"):
        client.fit(start_arrays(), without)


def test_modules_that_held_another_control_take_the_one_that_is_asked_for(tmp_path):
    other = to_bytes(tiny_model(7).state_dict())
    expected, _, _ = fit(tmp_path / "0")
    client = DcCclClient(tiny_model(4), tiny_model(5), device_loader, tmp_path / "1")
    changed = state_of(client.fit(start_arrays(), a_config(blob=other))[0])
    assert not torch.equal(changed["3.weight"], expected["3.weight"])
    assert_same(state_of(client.fit(start_arrays(), a_config())[0]), expected)
    # The modules are another client's too, whose control is read for it all the same.
    own = tiny_model(5)
    for blob, wanted in ((other, changed), (MIMIC, expected), (other, changed)):
        client = DcCclClient(tiny_model(4), own, device_loader, tmp_path / "2")
        assert_same(state_of(client.fit(start_arrays(), a_config(blob=blob))[0]), wanted)
