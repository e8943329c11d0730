"""Nothing crosses that a method does not declare, and none of what stays where it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_experiments import small_experiment, two_widths
from small_worlds import small_world
from wire_watch import findings, watched_run

from dccl_flower.config_loading import load_conf
from dccl_flower.data.loader import normalise
from dccl_flower.simulations.experiment import open_experiment

DC_CCL = [
    (),
    ("exemplars=20", "head_tuning=federated", "rounds.keep_momentum=true"),
    ("exemplars=20", "exemplar_choice=herded", "rounds.server_momentum=0.5"),
    ("fusion=class_wise_head", "head_tuning=federated", "rounds.head_tuning_steps=2"),
    ("rounds.scaffold=true", "normalisation=group"),
    ("normalisation=batch_mixed", "wire.codec=fp16"),
    ("normalisation=batch_fused", "wire.codec=int8", "rounds.lr=1e-3", "rounds.max_grad_norm=1"),
    ("normalisation=batch_frozen", "wire.codec=named"),
    ("normalisation=group_ws", "loss=ce"),
    ("model.shared_stem=true", "runtime.cache_logits=false", "data.augment=flip_crop"),
    ("model.co_start=mimic",),
    ("control=none", "model.shared_stem=true"),
    ("rounds.cloud_weight=0", "devices.per_round=2"),
]
PLAIN = [
    ("method.name=fedavg",),
    ("method.name=fedavg", "wire.codec=int8"),
    ("method.name=heterofl",),
]
ICIIA = [
    (),
    ("method.training=federated",),
    ("adaptation.by=fine_tuning", "adaptation.cached=8"),
    ("adaptation.by=prompt", "wire.codec=fp16"),
]
METAPATCH = [
    (),
    ("method.raw_samples=device",),
    ("method.raw_samples=device", "cloud.learns=stage_2", "wire.codec=fp16"),
    ("method.serves=cloud", "adaptation.per_patch=true"),
    ("adaptation.by=patches", "cloud.learns=data", "method.raw_samples=device"),
    ("adaptation.by=fine_tuning", "cloud.learns=nothing"),
]
WITHOUT_KEYS = [("matching.by=nothing",), ("method.serves=cloud",)]
WITH_KEYS = [(), ("matching.by=users",), ("matching.by=random", "method.report_kept=true")]


def iciia(*changes):
    quick = ("pretrain.epochs=1", "adaptation.epochs=1", "devices.count=4", "adaptation.clients=20")
    return open_experiment(load_conf("iciia_digits", [*quick, *changes]))


def coda(*changes):
    return small_world("coda_world", "data.history=3", "data.world.rows=20", *changes)


def found(experiment, store, **options):
    return findings(experiment, *watched_run(experiment, store, **options))


@pytest.mark.parametrize("changes", DC_CCL + PLAIN, ids=" ".join)
def test_images_and_the_cloud_submodel_stay_where_they_are(changes, tmp_path):
    assert found(small_experiment(*changes), tmp_path) == []


def test_so_they_do_where_devices_share_messages_or_train_half_the_width(tmp_path):
    together = small_experiment("runtime.devices_per_node=3", "fusion=class_wise_head")
    assert found(together, tmp_path / "together", nodes=1) == []
    experiment = small_experiment(two_widths(tmp_path))
    assert found(experiment, tmp_path / "widths") == []


@pytest.mark.parametrize("changes", ICIIA, ids=" ".join)
def test_images_of_iciia_stay_where_they_are(changes, tmp_path):
    assert found(iciia(*changes), tmp_path) == []


@pytest.mark.parametrize("changes", METAPATCH, ids=" ".join)
def test_interactions_of_metapatch_stay_where_they_are(changes, tmp_path):
    assert found(small_world("dccl_world", *changes), tmp_path) == []


@pytest.mark.parametrize("changes", WITHOUT_KEYS, ids=" ".join)
def test_interactions_of_coda_stay_where_nothing_is_matched(changes, tmp_path):
    assert found(coda(*changes), tmp_path) == []


@pytest.mark.parametrize("changes", WITH_KEYS, ids=" ".join)
def test_what_coda_matches_by_is_told_in_clear(changes, tmp_path):
    assert found(coda(*changes), tmp_path) == ["an interaction row"]


def test_the_cloud_submodel_goes_down_by_name_alone(tmp_path):
    assert found(small_experiment("control=cloud_submodel"), tmp_path) == ["cloud submodel"]


class Leaky:
    """A device's half whose every answer is changed."""

    def __init__(self, half, change):
        self.turns, self.state_like, self.merge = half.turns, half.state_like, half.merge
        self._half, self._change = half, change

    def turn(self, ask, device):
        return self._change(self._half.turn(ask, device), device)


def _image(device):
    taken = device.own.taken(torch.arange(1))
    return taken["images"].numpy(), {n: taken[n].numpy() for n in ("mean", "std")}


def normalised_image(answer, device):
    raw, by = _image(device)
    return _in_state(answer, normalise(raw, by["mean"], by["std"]))


def scaled_image(answer, device):
    return _in_state(answer, torch.from_numpy(_image(device)[0] / np.float32(255)))


def raw_image(answer, device):
    return _told(answer, "loss", _image(device)[0].reshape(-1).tolist())


def label_list(answer, device):
    return _told(answer, "loss", device.own.targets.tolist()[:20])


def labels_as_weights(answer, device):
    return _in_state(answer, device.own.targets[:20].float())


def counts_of_labels(answer, device):
    return _told(answer, "class-counts", torch.bincount(device.own.targets).tolist())


def _in_state(answer, values):
    name = max(answer.state, key=lambda each: answer.state[each].numel())
    tensor = answer.state[name].clone()
    tensor.view(-1)[: values.numel()] = values.reshape(-1)
    return replace(answer, state={**answer.state, name: tensor})


def _told(answer, name, values):
    told = {**answer.beside, name: torch.tensor(values)}
    metrics = {k: v for k, v in answer.metrics.items() if k != name}
    return replace(answer, metrics=metrics, beside=told)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (normalised_image, "pixels"),
        (scaled_image, "pixels"),
        (raw_image, "pixels"),
        (label_list, "labels"),
        (labels_as_weights, "labels"),
        (counts_of_labels, "undeclared class-counts"),
    ],
)
def test_what_a_device_leaks_is_seen(change, what, tmp_path):
    experiment = small_experiment()
    leaky = found(experiment, tmp_path, half=lambda half: Leaky(half, change))
    assert leaky == [what]


def item_list(answer, device):
    items = device.own.own["item"].tolist()
    return _told(answer, "loss", (4 * items)[:4])  # of some there are fewer


def history_in_the_vector(answer, device):
    vector = answer.state["vector"].clone()
    history = device.own.own["history"][-1].float()
    vector[: len(history)] = history[: len(vector)]
    return replace(answer, state={"vector": vector})


@pytest.mark.parametrize("change", [item_list, history_in_the_vector])
def test_an_interaction_that_leaks_is_seen(change, tmp_path):
    changes = ("data.history=6", "data.world.rows=40", "adaptation.rank=8")
    experiment = small_world("dccl_world", *changes)
    leaky = found(experiment, tmp_path, half=lambda half: Leaky(half, change))
    assert leaky == ["an interaction row"]


class Open:
    """A server's half whose every ask is changed, with the cloud that it has."""

    def __init__(self, method, change):
        self._method, self._change = method, change

    def __getattr__(self, name):
        return getattr(self._method, name)

    def round(self, number, state, devices):
        going, answers = self._method.round(number, state, devices), None
        while True:
            try:
                asks = going.send(answers)
            except StopIteration as end:
                return end.value
            asks = {device: self._change(ask, self.cloud) for device, ask in asks.items()}
            answers = yield asks


def largest(cloud):
    return max(cloud.cloud_submodel.state_dict().values(), key=torch.numel)


def whole_tensor(ask, cloud):
    return replace(ask, beside={"mimic": {"weight": largest(cloud)}})


def slice_in_the_state(ask, cloud):
    name = max(ask.state, key=lambda each: ask.state[each].numel())
    held = ask.state[name].clone()
    held.view(-1)[:12] = largest(cloud).reshape(-1)[40:52]
    return replace(ask, state={**ask.state, name: held})


def halved(ask, cloud):
    return replace(ask, beside={"mimic": {"weight": largest(cloud)[:1].half()}})


def a_kind_of_its_own(ask, cloud):
    return replace(ask, beside={"hint": {"mean": torch.ones(3)}})


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (whole_tensor, "cloud submodel"),
        (slice_in_the_state, "cloud submodel"),
        (halved, "cloud submodel"),
        (a_kind_of_its_own, "undeclared hint_down"),
    ],
)
def test_what_the_server_leaks_is_seen(change, what, tmp_path):
    leaky = found(small_experiment(), tmp_path, server=lambda method: Open(method, change))
    assert leaky == [what]
