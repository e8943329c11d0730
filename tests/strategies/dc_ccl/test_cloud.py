from __future__ import annotations

import copy

import pytest
import torch
from clouds import cloud_of, same, stem_cloud
from tiny import tiny_cloud, tiny_loader, tiny_model

from dccl_flower.image_config import DistilConf, PretrainConf
from dccl_flower.learning.controlled import LocalRecipe
from dccl_flower.learning.evaluate import predict

RECIPE = LocalRecipe(steps=3, lr=0.1)


@pytest.fixture(scope="module")
def prepared_state():
    cloud = tiny_cloud()
    cloud.prepare()
    cloud.train_co(cloud.co_state(), "ce", RECIPE, 1)
    return copy.deepcopy(cloud.state_dict())


def test_prepare_runs_both_phases_once():
    seen = []
    cloud = cloud_of(on_progress=lambda *progress: seen.append(progress[:3]))
    assert (cloud.prepared, seen) == (False, [])
    cloud.prepare()
    phases = [("pretrain", 1, 2), ("pretrain", 2, 2)]
    phases += [("distil", 1, 3), ("distil", 2, 3), ("distil", 3, 3)]
    assert (cloud.prepared, seen) == (True, phases)
    before = copy.deepcopy(cloud.state_dict())
    cloud.prepare()
    assert seen == phases
    assert all(same(state, before[role]) for role, state in cloud.state_dict().items())


def test_prepare_trains_cloud_submodel_and_mimic_and_leaves_the_co_submodel():
    cloud = cloud_of()
    before = copy.deepcopy(cloud.state_dict())
    cloud.prepare()
    after = cloud.state_dict()
    assert not same(after["cloud_submodel"], before["cloud_submodel"])
    assert not same(after["mimic"], before["mimic"])
    assert same(after["co_submodel"], before["co_submodel"])
    frozen = [*cloud.cloud_submodel.parameters(), *cloud.mimic.parameters()]
    assert not any(parameter.requires_grad for parameter in frozen)
    assert all(parameter.requires_grad for parameter in cloud.co_submodel.parameters())


def test_prepare_is_decided_by_the_seed_and_not_by_the_global_generator():
    results = []
    for seed, global_seed in ((0, 1), (0, 2), (7, 1)):
        torch.manual_seed(global_seed)
        cloud = cloud_of(seed)
        cloud.prepare()
        results.append(cloud.state_dict()["mimic"])
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_validation_data_decide_which_epoch_of_pretraining_is_kept():
    # All validation labels are turned round, so that an early epoch is the best.
    options = {"pretrain": PretrainConf(epochs=12, lr=0.2), "distil": DistilConf(epochs=1)}
    images, labels = next(iter(tiny_loader([0, 1], 40, seed=6, batch_size=40)))
    plain = cloud_of(**options)
    checked = cloud_of(**options, validation_loader=[(images, 1 - labels)])
    for cloud in (plain, checked):
        cloud.prepare()
    wrong = [
        (predict(c.cloud_submodel, [(images, labels)])[0].argmax(1) != labels).float().mean()
        for c in (plain, checked)
    ]
    assert wrong[1] > wrong[0]


def test_validation_data_decide_which_epoch_of_distillation_is_kept():
    # Validation samples far from the cloud's: the mimic's answers there drift while it learns.
    options = {"pretrain": PretrainConf(epochs=1), "distil": DistilConf(epochs=6, lr=0.3)}
    far = [(torch.tensor([[30.0, 50.0], [-40.0, 20.0]]), torch.tensor([0, 1]))]
    plain, checked = cloud_of(**options), cloud_of(**options, validation_loader=far)
    gaps = []
    for cloud in (plain, checked):
        cloud.prepare()
        wanted, answers = (predict(m, far)[0] for m in (cloud.cloud_submodel, cloud.mimic))
        gaps.append((wanted - answers).square().mean())
    assert gaps[1] < gaps[0]


@pytest.mark.parametrize("loss", ["ce", "prior_corrected"])
def test_a_round_of_training_is_the_same_each_time_whatever_the_global_generator(loss):
    cloud = cloud_of()
    start = cloud.co_state()
    torch.manual_seed(1)
    first = cloud.train_co(start, loss, RECIPE, 1)
    cloud.train_co(first, loss, RECIPE, 2)
    torch.manual_seed(2)
    assert same(cloud.train_co(start, loss, RECIPE, 1), first)
    assert same(cloud_of().train_co(start, loss, RECIPE, 1), first)
    assert not same(first, start)


def test_other_rounds_and_other_seeds_draw_other_batches():
    cloud = cloud_of()
    start = cloud.co_state()
    first = cloud.train_co(start, "ce", RECIPE, 1)
    assert not same(cloud.train_co(start, "ce", RECIPE, 2), first)
    assert not same(cloud_of(seed=1).train_co(start, "ce", RECIPE, 1), first)


def test_work_leaves_the_global_generator_alone():
    cloud = cloud_of()
    before = torch.get_rng_state()
    cloud.prepare()
    state = cloud.train_co(cloud.co_state(), "prior_corrected", RECIPE, 1)
    cloud.head_gradient(state, "prior_corrected", 2, 1, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_starts_from_the_state_given_and_does_not_change_it():
    cloud = cloud_of()
    start = {name: tensor + 0.5 for name, tensor in cloud.co_state().items()}
    kept = copy.deepcopy(start)
    result = cloud.train_co(start, "ce", LocalRecipe(1, 0.0, statistics="frozen"), 1)
    assert same(start, kept)
    assert same(result, kept)


def test_rounds_are_served_by_the_loader_meant_for_them():
    own = tiny_loader([0, 0, 1], 12, seed=9, batch_size=4)
    start = cloud_of().co_state()
    served = cloud_of(co_loader=own).train_co(start, "prior_corrected", RECIPE, 1)
    assert same(served, cloud_of(train_loader=own).train_co(start, "prior_corrected", RECIPE, 1))
    assert not same(served, cloud_of().train_co(start, "prior_corrected", RECIPE, 1))


def test_a_class_the_cloud_lacks_is_left_alone_under_the_corrected_prior():
    cloud = cloud_of()
    start = cloud.co_state()
    recipe = LocalRecipe(3, 0.1, weight_decay=0.0)
    change = {}
    for loss in ("ce", "prior_corrected"):
        result = cloud.train_co(start, loss, recipe, 1)
        change[loss] = (result["3.weight"] - start["3.weight"]).abs().amax(1)
    assert change["prior_corrected"][2] == 0
    assert change["ce"][2] > 0
    assert (change["prior_corrected"][:2] > 0).all()


def test_co_state_is_a_copy():
    cloud = cloud_of()
    state = cloud.co_state()
    kept = copy.deepcopy(state)
    for tensor in state.values():
        tensor.add_(1)
    assert same(cloud.co_state(), kept)


def test_state_dict_round_trip(prepared_state):
    seen = []
    other = tiny_cloud(on_progress=lambda *progress: seen.append(progress))
    other.load_state_dict(prepared_state)
    other.prepare()
    assert (other.prepared, seen) == (True, [])
    assert list(other.state_dict()) == ["cloud_submodel", "mimic", "co_submodel"]
    for role, state in other.state_dict().items():
        assert same(state, prepared_state[role]), role


def test_the_mimic_s_blob_is_safetensors_and_loads(prepared_state):
    cloud = tiny_cloud()
    cloud.load_state_dict(prepared_state)
    loaded = cloud.control_states()["mimic"]
    assert loaded.keys() == prepared_state["mimic"].keys()
    fresh = tiny_model(seed=77)
    fresh.load_state_dict(loaded)
    assert same(fresh.state_dict(), prepared_state["mimic"])


def test_a_shared_stem_is_copied_into_co_submodel_and_mimic():
    cloud = stem_cloud()
    initial = copy.deepcopy(cloud.cloud_submodel[0].state_dict())
    cloud.prepare()
    cloud.train_co(cloud.co_state(), "ce", RECIPE, 1)
    trained = cloud.cloud_submodel[0].state_dict()
    assert not same(trained, initial)
    assert same(cloud.mimic[0].module.state_dict(), trained)
    assert same(cloud.co_submodel[0].module.state_dict(), trained)


def test_a_shared_stem_travels_with_the_mimic_and_not_with_the_co_submodel():
    cloud = stem_cloud()
    assert list(cloud.co_state()) == ["2.weight", "2.bias"]
    travelling = cloud.control_states()
    assert list(travelling) == ["cloud_stem", "mimic"]
    assert {*travelling["cloud_stem"], *travelling["mimic"]} == cloud.mimic.state_dict().keys()
    assert "0.module.0.weight" in travelling["cloud_stem"]
    assert all(name.startswith("2.") for name in travelling["mimic"])


def test_exemplars_are_cloud_samples_in_even_numbers():
    loader = tiny_loader([0, 1], 40, seed=5, shuffle=False)
    exemplars = cloud_of(train_loader=loader).exemplars(6)
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert sorted(exemplars["labels"].tolist()) == [0, 0, 0, 1, 1, 1]
    for image, label in zip(exemplars["images"], exemplars["labels"], strict=True):
        (place,) = (images == image).all(1).nonzero().flatten().tolist()
        assert labels[place] == label


def test_the_head_s_gradient_is_that_of_the_state_given():
    cloud = cloud_of()
    start = cloud.co_state()
    gradient = cloud.head_gradient(start, "ce", 2, 1, 0)
    assert {name: g.shape for name, g in gradient.items()} == {
        name: start[name].shape for name in ("3.weight", "3.bias")
    }
    doubled = {name: 2 * tensor for name, tensor in start.items()}
    assert not same(cloud.head_gradient(doubled, "ce", 2, 1, 0), gradient)
    assert same(cloud.head_gradient(start, "ce", 2, 1, 0), gradient)


def test_a_scorer_is_of_a_prepared_cloud():
    cloud = cloud_of()
    cloud.scorer(tiny_loader([0, 1, 2], 9, seed=8), [0, 1], [2])
    assert cloud.prepared


def test_the_scorer_sees_test_data_and_classes():
    cloud = cloud_of()
    test_loader = tiny_loader([0, 1, 2], 30, seed=8, shuffle=False)
    scores = cloud.scorer(test_loader, [0, 1], [2]).references()["cloud_submodel"]
    logits, labels = predict(cloud.cloud_submodel, test_loader)
    right = (logits.argmax(1) == labels).double()
    assert scores["accuracy"] == pytest.approx(right.mean().item())
    assert scores["accuracy_cloud_classes"] == pytest.approx(right[labels < 2].mean().item())
    assert scores["accuracy_device_classes"] == pytest.approx(right[labels == 2].mean().item())
