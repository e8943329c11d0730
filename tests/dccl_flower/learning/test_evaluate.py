from __future__ import annotations

import copy
import math
from dataclasses import astuple, fields

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dccl_flower.data.batches import as_batches
from dccl_flower.learning.evaluate import Scorer, Scores, accuracy, predict, score_sides

# Four samples, three classes; images are one-hot, so that a linear model holds its logits.
LABELS = torch.tensor([0, 1, 2, 2])
CLOUD = [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
MIMIC = [[0.0, 1.0, 0.0], [0.2, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 4.0, 0.0]]
CO = [[1.5, 0.0, 0.0], [0.0, 0.0, 0.5], [0.0, 0.0, 2.0], [0.0, 0.0, 2.0]]


def table(logits):
    """Return a model that answers the i-th one-hot image with the i-th row."""
    model = nn.Linear(4, 3, bias=False)
    model.load_state_dict({"weight": torch.tensor(logits).T})
    return model


def four_images(batch_size=3):
    return as_batches(DataLoader(TensorDataset(torch.eye(4), LABELS), batch_size))


def scorer(co=None):
    co = table([[0.0] * 3] * 4) if co is None else co
    return Scorer(table(CLOUD), table(MIMIC), co, four_images(), [0, 1], [2])


def alone(judge, part):
    """Return the scores of a submodel on its own."""
    found = judge.references()[part]
    return Scores(*(found[field.name] for field in fields(Scores)))


@pytest.mark.parametrize(
    ("labels", "expected"), [([0, 2, 1], 1.0), ([0, 2, 2], 2 / 3), ([1, 0, 0], 0.0)]
)
def test_accuracy_by_hand(labels, expected):
    logits = torch.tensor([[3.0, 1.0, 2.0], [-1.0, -2.0, 0.0], [0.0, 0.1, 0.0]])
    assert accuracy(logits, torch.tensor(labels)) == pytest.approx(expected)


def test_accuracy_without_rows_is_not_a_number():
    assert math.isnan(accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)))


@pytest.mark.parametrize(
    ("cloud_classes", "device_classes", "expected"),
    [
        # answers 0, 1, 0, 1 to labels 0, 1, 2, 2
        ([0, 1], [2], Scores(0.5, 1.0, 0.0)),
        ([1, 2], [0], Scores(0.5, 1 / 3, 1.0)),
        ([0, 1, 2], [1, 2], Scores(0.5, 0.5, 1 / 3)),
    ],
)
def test_scores_of_both_sides_by_hand(cloud_classes, device_classes, expected):
    found = score_sides(torch.tensor(CLOUD), LABELS, cloud_classes, device_classes)
    assert astuple(found) == pytest.approx(astuple(expected))


def test_scores_of_the_cloud_submodel_by_hand():
    # answers 0, 1, 0, 1
    assert alone(scorer(), "cloud_submodel") == Scores(0.5, 1.0, 0.0)


def test_scores_of_the_mimic_by_hand():
    # answers 1, 0, 2, 1
    assert alone(scorer(), "mimic") == Scores(0.25, 0.0, 0.5)


def test_scores_of_the_sums_by_hand():
    # cloud + co answers 0, 1, 0, 2 and mimic + co answers 0, 2, 2, 1
    scores, mimic_co = scorer().served(table(CO).state_dict())
    assert scores == Scores(0.75, 1.0, 0.5)
    assert mimic_co == 0.5


def test_fidelity_of_the_mimic_by_hand():
    # Squares sum to 5 + 1.04 on the cloud's two samples and to 10 + 9 on the devices', over
    # six logits each; the answers are 0, 1 | 0, 1 and 1, 0 | 2, 1.
    found = scorer().references()["mimic"]
    assert {name for name in found if name.startswith("kl")} == {
        "kl_cloud_classes",
        "kl_device_classes",
    }
    assert found["logit_mse_cloud_classes"] == pytest.approx(6.04 / 6)
    assert found["logit_mse_device_classes"] == pytest.approx(19 / 6)
    assert (found["agreement_cloud_classes"], found["agreement_device_classes"]) == (0.0, 0.5)


def test_every_state_is_scored_afresh():
    judge = scorer()
    judge.served(table(CO).state_dict())
    silent, mimic_alone = judge.served(table([[0.0] * 3] * 4).state_dict())
    assert silent == alone(judge, "cloud_submodel")
    assert mimic_alone == alone(judge, "mimic").accuracy
    assert judge.served(table(CO).state_dict())[0] == Scores(0.75, 1.0, 0.5)


def test_scores_of_no_class_on_one_side_are_not_a_number():
    judge = Scorer(table(CLOUD), table(MIMIC), table(CO), four_images(), [0, 1, 2], [])
    scores = alone(judge, "cloud_submodel")
    assert scores.accuracy == scores.accuracy_cloud_classes == 0.5
    assert math.isnan(scores.accuracy_device_classes)


@pytest.mark.parametrize("training", [True, False])
def test_scoring_does_not_touch_the_co_submodel_passed_in(training):
    co = nn.Sequential(table(MIMIC), nn.BatchNorm1d(3)).train(training)
    before = copy.deepcopy(co.state_dict())
    judge = Scorer(table(CLOUD), table(MIMIC), co, four_images(), [0, 1], [2])
    exchanged = {n: t + 1 for n, t in co.state_dict().items() if t.is_floating_point()}
    judge.served(exchanged)
    assert all(torch.equal(tensor, before[name]) for name, tensor in co.state_dict().items())
    assert all(module.training is training for module in co.modules())


def test_later_training_of_the_co_submodel_does_not_reach_the_scorer():
    co = nn.Sequential(table(CO), nn.BatchNorm1d(3))
    judge = Scorer(table(CLOUD), table(MIMIC), co, four_images(), [0, 1], [2])
    state = {n: t.clone() for n, t in co.state_dict().items() if t.is_floating_point()}
    expected = judge.served(state)
    co.requires_grad_(False)[0].weight.fill_(-9)
    assert judge.served(state) == expected


@pytest.mark.parametrize("training", [True, False])
def test_predict_evaluates_and_restores_the_mode(training):
    # In training the dropout would blank everything and the norm would learn a new mean.
    model = nn.Sequential(table(CO), nn.BatchNorm1d(3, eps=0), nn.Dropout(1.0)).train(training)
    logits, labels = predict(model, four_images())
    torch.testing.assert_close(logits, torch.tensor(CO))
    assert torch.equal(labels, LABELS)
    assert torch.equal(model[1].running_mean, torch.zeros(3))
    assert all(module.training is training for module in model.modules())


@pytest.mark.parametrize("batch_size", [1, 3, 4, 9])
def test_predict_does_not_depend_on_the_batch_size(batch_size):
    logits, labels = predict(table(CLOUD), four_images(batch_size))
    assert logits.tolist() == CLOUD
    assert labels.tolist() == LABELS.tolist()


def test_predict_returns_single_precision():
    loader = [(torch.eye(4).half(), LABELS)]
    assert predict(table(CLOUD).half(), loader)[0].dtype == torch.float32
