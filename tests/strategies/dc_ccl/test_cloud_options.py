"""What a cloud may be told: its control, how it computes, and what it takes over or carries on."""

from __future__ import annotations

import copy

import pytest
import torch
from clouds import cloud_of, same, stem_cloud
from safetensors.torch import load as load_safetensors
from tiny import tiny_cloud, tiny_loader, tiny_model
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from dccl_flower.checkpoint import to_bytes
from dccl_flower.data.batches import endless
from dccl_flower.image_config import DistilConf, PretrainConf
from dccl_flower.learning.compute import Compute
from dccl_flower.learning.controlled import LocalRecipe, train_controlled
from dccl_flower.learning.evaluate import predict
from dccl_flower.learning.exemplars import head_inputs, herded_rows
from dccl_flower.models.frozen import exchanged_state, load_exchanged
from dccl_flower.seeds import isolated_rng, torch_generator
from dccl_flower.strategies.dc_ccl.cloud import Cloud

RECIPE = LocalRecipe(steps=3, lr=0.1)
PLAIN_STEP = LocalRecipe(steps=1, lr=0.1, momentum=0.0, weight_decay=0.0)


class Zeros(nn.Module):
    def forward(self, x):
        return torch.zeros(len(x), 3)


def adopted(source, cloud):
    """Return ``cloud`` with what ``source`` has prepared, as it comes from a file."""
    blobs = [to_bytes(m.state_dict()) for m in (source.cloud_submodel, source.mimic)]
    cloud.adopt(*map(load_safetensors, blobs))
    return cloud


def trained_stem(cloud):
    return cloud.cloud_submodel[0].state_dict()


def trained_by_hand(control, start):
    """Train a tiny co-submodel on the batches of the cloud's first round."""
    keys = ("train", "cloud", "round", 1)
    co = tiny_model(3)
    load_exchanged(co, start)
    with isolated_rng(0, *keys, "torch"):
        batches = endless(tiny_loader([0, 1], 40, seed=5), torch_generator(0, *keys))
        train_controlled(co, control.eval(), batches, functional.cross_entropy, RECIPE)
    return exchanged_state(co)


def test_an_unknown_control_is_refused_with_the_known_ones():
    message = "control='teacher': expected one of mimic, cloud_submodel, none"
    with pytest.raises(ValueError, match=message):
        tiny_cloud(control="teacher")


@pytest.mark.parametrize("control", ["mimic", "cloud_submodel"])
def test_the_co_submodel_trains_under_the_control_and_the_blob_is_its_state(control):
    cloud = tiny_cloud(control=control)
    cloud.prepare()
    model = getattr(cloud, control)
    start = cloud.co_state()
    assert same(cloud.train_co(start, "ce", RECIPE, 1), trained_by_hand(model, start))
    assert not same(trained_by_hand(Zeros(), start), trained_by_hand(model, start))
    blob = cloud.control_states()[control]
    assert blob.keys() == model.state_dict().keys()
    assert all(torch.equal(blob[name], t) for name, t in model.state_dict().items())


def test_without_control_the_co_submodel_trains_alone_and_nothing_travels():
    cloud = tiny_cloud(control="none")
    cloud.prepare()
    start = cloud.co_state()
    assert same(cloud.train_co(start, "ce", RECIPE, 1), trained_by_hand(Zeros(), start))
    assert cloud.control_states() == {}


def test_without_control_the_shared_stem_still_travels():
    cloud = stem_cloud(control="none")
    cloud.prepare()
    assert same(cloud.control.get_submodule("0").module.state_dict(), trained_stem(cloud))
    blob = cloud.control_states()["cloud_stem"]
    assert blob.keys() == {f"0.module.{name}" for name in trained_stem(cloud)}


def test_the_head_s_gradient_is_that_under_the_control():
    gradients = {}
    for control in ("mimic", "cloud_submodel", "none"):
        cloud = tiny_cloud(control=control)
        cloud.prepare()
        gradients[control] = cloud.head_gradient(cloud.co_state(), "ce", 2, 1, 0)
    assert not same(gradients["mimic"], gradients["cloud_submodel"])
    assert not same(gradients["mimic"], gradients["none"])


def test_what_is_adopted_equals_what_was_prepared():
    seen = []
    source = tiny_cloud()
    source.prepare()
    cloud = adopted(source, tiny_cloud(on_progress=lambda *progress: seen.append(progress)))
    cloud.prepare()
    assert (cloud.prepared, seen) == (True, [])
    for role, state in cloud.state_dict().items():
        assert same(state, source.state_dict()[role]), role
    frozen = [*cloud.cloud_submodel.parameters(), *cloud.mimic.parameters()]
    assert not any(parameter.requires_grad for parameter in frozen)
    start = cloud.co_state()
    assert same(cloud.train_co(start, "ce", RECIPE, 1), source.train_co(start, "ce", RECIPE, 1))


@pytest.mark.parametrize("control", ["mimic", "none"])
def test_an_adopted_stem_is_copied_into_co_submodel_and_control(control):
    source = stem_cloud(control=control)
    source.prepare()
    cloud = adopted(source, stem_cloud(control=control))
    assert same(trained_stem(cloud), trained_stem(source))
    for model in (cloud.co_submodel, cloud.control, cloud.mimic):
        assert same(model.get_submodule("0").module.state_dict(), trained_stem(source))


def test_what_is_adopted_computes_the_same_in_any_memory_layout():
    # The layout decides which kernels run, and so the last bits of every logit.
    def cloud():
        models = [convolutional(seed) for seed in (1, 2, 3)]
        return Cloud(
            *models,
            image_loader(),
            pretrain=PretrainConf(epochs=1),
            distil=DistilConf(epochs=1),
            compute=Compute(channels_last=True),
        )

    source = cloud()
    source.prepare()
    other = adopted(source, cloud())
    for role in ("cloud_submodel", "mimic"):
        logits = [predict(getattr(c, role), image_loader())[0] for c in (source, other)]
        assert torch.equal(*logits), role


def convolutional(seed):
    with isolated_rng(seed, "convolutional"):
        wide = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU()]
        return nn.Sequential(*wide, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))


def image_loader():
    images = torch.randn(32, 3, 16, 16, generator=torch_generator(0, "images"))
    return DataLoader(TensorDataset(images, torch.arange(32) % 3), 16)


@pytest.mark.parametrize("mixed_precision", [False, True])
def test_mixed_precision_changes_the_arithmetic_and_not_the_weights_kind(mixed_precision):
    compute = Compute(mixed_precision=mixed_precision, channels_last=True)
    cloud, plain = tiny_cloud(compute=compute), tiny_cloud()
    for each in (cloud, plain):
        each.prepare()
    for role in ("cloud_submodel", "mimic"):
        state, expected = cloud.state_dict()[role], plain.state_dict()[role]
        assert {t.dtype for n, t in state.items() if "tracked" not in n} == {torch.float32}
        assert all(torch.isfinite(tensor).all() for tensor in state.values())
        assert same(state, expected) != mixed_precision


def test_class_counts_are_those_of_the_loader_that_serves_the_rounds():
    own = tiny_loader([0, 0, 1], 12, seed=9)
    assert cloud_of().class_counts().tolist() == [20, 20, 0]
    assert cloud_of(co_loader=own).class_counts().tolist() == [8, 4, 0]


def test_classes_are_counted_once_and_leave_the_global_generator_alone():
    passes = []

    class Counting(DataLoader):
        def __iter__(self):
            passes.append(None)
            return super().__iter__()

    dataset = tiny_loader([0, 1], 40, seed=5).dataset
    cloud = cloud_of(train_loader=Counting(dataset, 8, shuffle=True))
    before = torch.get_rng_state()
    assert cloud.class_counts().tolist() == cloud.class_counts().tolist() == [20, 20, 0]
    assert len(passes) == 1
    assert torch.equal(torch.get_rng_state(), before)


def herding_cloud(global_seed=0):
    torch.manual_seed(global_seed)
    cloud = cloud_of(train_loader=tiny_loader([0, 1], 40, seed=5, shuffle=True))
    cloud.prepare()
    return cloud


def test_herded_exemplars_are_the_same_each_time_and_as_many_of_each_class():
    exemplars = herding_cloud().exemplars(6, "herded")
    assert same(herding_cloud(global_seed=9).exemplars(6, "herded"), exemplars)
    assert sorted(exemplars["labels"].tolist()) == [0, 0, 0, 1, 1, 1]
    assert not same(herding_cloud().exemplars(6, "random"), exemplars)


def test_herded_exemplars_are_those_the_cloud_submodel_herds():
    loader = tiny_loader([0, 1], 40, seed=5, shuffle=False)
    cloud = cloud_of(train_loader=loader)
    cloud.prepare()
    exemplars = cloud.exemplars(4, "herded")
    rows = herded_rows(*head_inputs(cloud.cloud_submodel, loader), 4)
    assert torch.equal(exemplars["images"], loader.dataset.tensors[0][rows])
    assert torch.equal(exemplars["labels"], loader.dataset.tensors[1][rows])


def test_a_correction_is_added_to_the_gradient():
    cloud = cloud_of()
    start = cloud.co_state()
    correction = {"3.weight": torch.full((3, 6), 0.5)}
    plain = cloud.train_co(start, "ce", PLAIN_STEP, 1)
    corrected = cloud.train_co(start, "ce", PLAIN_STEP, 1, correction)
    torch.testing.assert_close(corrected["3.weight"], plain["3.weight"] - 0.1 * 0.5)
    assert torch.equal(corrected["0.weight"], plain["0.weight"])
    assert same(cloud.train_co(start, "ce", PLAIN_STEP, 1, {}), plain)


def test_kept_momentum_carries_the_last_step_on():
    recipe = LocalRecipe(steps=1, lr=0.1, momentum=0.9, weight_decay=0.0)
    start = cloud_of().co_state()
    kept = cloud_of()
    first = kept.train_co(start, "ce", recipe, 1, keep_momentum=True)
    second = kept.train_co(first, "ce", recipe, 2, keep_momentum=True)
    fresh = cloud_of().train_co(first, "ce", recipe, 2)
    for name, _ in tiny_model(3).named_parameters():
        # One step from an empty buffer moves by the gradient alone, which then stays in it.
        expected = fresh[name] + 0.9 * (first[name] - start[name])
        torch.testing.assert_close(second[name], expected)
    assert not same(second, fresh)


def test_momentum_is_not_kept_unless_asked_for():
    cloud = cloud_of()
    start = cloud.co_state()
    first = cloud.train_co(start, "ce", RECIPE, 1)
    assert same(cloud.train_co(start, "ce", RECIPE, 1), first)
    assert same(cloud.train_co(start, "ce", RECIPE, 1, keep_momentum=True), first)
    assert not same(cloud.train_co(start, "ce", RECIPE, 1, keep_momentum=True), first)


def test_a_cloud_under_no_control_can_be_copied_with_its_state():
    source = tiny_cloud(control="none")
    source.prepare()
    other = tiny_cloud(control="none")
    other.load_state_dict(copy.deepcopy(source.state_dict()))
    assert other.prepared
    assert other.control_states() == source.control_states() == {}
    assert same(other.state_dict()["mimic"], source.state_dict()["mimic"])


def test_a_co_submodel_can_start_as_the_mimic_with_a_head_of_zeros():
    seen = []
    cloud = tiny_cloud(co_start="mimic", on_progress=lambda *progress: seen.append(progress))
    start = cloud.initial_co_state()
    assert (len(seen), cloud.prepared) == (4, True)
    for name, tensor in exchanged_state(cloud.mimic).items():
        expected = torch.zeros_like(tensor) if name.startswith("3.") else tensor
        assert torch.equal(start[name], expected), name
    source = tiny_cloud()
    source.prepare()
    assert same(adopted(source, tiny_cloud(co_start="mimic")).initial_co_state(), start)


def test_a_co_submodel_that_starts_as_built_does_not_wait_for_the_mimic():
    cloud = tiny_cloud()
    assert same(cloud.initial_co_state(), exchanged_state(tiny_model(3)))
    assert not cloud.prepared


def test_a_trained_co_submodel_is_not_put_back_to_the_mimic():
    source = tiny_cloud(co_start="mimic")
    source.train_co(source.initial_co_state(), "ce", RECIPE, 1)
    other = tiny_cloud(co_start="mimic")
    other.load_state_dict(copy.deepcopy(source.state_dict()))
    assert same(other.co_state(), source.co_state())
