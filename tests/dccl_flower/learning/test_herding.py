from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import normalize

from dccl_flower.learning.exemplars import head_inputs, herded_rows

POINTS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
labels_lists = st.lists(st.integers(0, 3), min_size=1, max_size=24)


def features_of(labels, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(labels), 3, generator=generator)


def model():
    torch.manual_seed(0)
    body = [nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.ReLU()]
    return nn.Sequential(nn.Sequential(*body), nn.Linear(3, 2))


def batches():
    images = torch.arange(10.0).view(5, 2)
    return [(images[:3], torch.tensor([4, 0, 2])), (images[3:], torch.tensor([1, 3]))]


def test_one_class_by_hand():
    # The mean is (0.53, 0.6). Nearest is (0.6, 0.8); with (1, 0) the two have the mean
    # (0.8, 0.4), 0.33 away, with (0, 1) they have (0.3, 0.9), 0.38 away. By itself (0, 1) is
    # nearer to the mean than (1, 0) is.
    labels = torch.zeros(3, dtype=torch.long)
    assert [herded_rows(POINTS, labels, k).tolist() for k in (1, 2, 3)] == [[2], [2, 0], [2, 0, 1]]


def test_the_length_of_features_does_not_matter():
    # As they are, (60, 80) would be the furthest from the mean of the three.
    lengths = torch.tensor([[1.0], [1.0], [100.0]])
    assert herded_rows(lengths * POINTS, torch.zeros(3), 3).tolist() == [2, 0, 1]


def test_each_class_is_herded_for_itself():
    # The same three points twice, of classes 5 and 2; class 2 comes first, then they take turns.
    features, labels = POINTS.repeat_interleave(2, 0), torch.tensor([5, 2] * 3)
    assert herded_rows(features, labels, 4).tolist() == [5, 4, 1, 0]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 99), st.data())
def test_classes_with_enough_samples_differ_by_one_at_most(classes, each, seed, data):
    labels = torch.arange(classes).repeat(each)
    count = data.draw(st.integers(1, len(labels)))
    rows = herded_rows(features_of(labels, seed), labels, count)
    assert len(rows) == len(set(rows.tolist())) == count
    taken = torch.bincount(labels[rows], minlength=classes)
    assert taken.max() - taken.min() <= 1


@settings(deadline=None, max_examples=50)
@given(labels_lists, st.integers(1, 30), st.integers(0, 99))
@example([0, 1, 1, 1], 4, 0)
def test_rows_spread_as_evenly_as_the_classes_reach(labels, count, seed):
    labels = torch.tensor(labels)
    rows = herded_rows(features_of(labels, seed), labels, count)
    assert len(rows) == len(set(rows.tolist())) == min(count, len(labels))
    available = torch.bincount(labels, minlength=4)
    taken = torch.bincount(labels[rows], minlength=4)
    # A class stays more than one behind another only where it is used up.
    assert ((taken == available) | (taken >= taken.max() - 1)).all()


@settings(deadline=None, max_examples=50)
@given(labels_lists, st.integers(0, 99))
def test_the_first_of_a_class_is_the_one_closest_to_its_mean(labels, seed):
    labels = torch.tensor(labels)
    features = features_of(labels, seed)
    classes = labels.unique()
    chosen = herded_rows(features, labels, len(classes))
    assert torch.equal(labels[chosen], classes)
    directions = normalize(features.double(), dim=1)
    for row, label in zip(chosen, classes, strict=True):
        mean = directions[labels == label].mean(0)
        distances = (directions - mean).norm(dim=1)
        assert distances[row] <= distances[labels == label].min() + 1e-9


def test_head_inputs_are_what_the_head_gets_in_eval_mode():
    net = model().train()
    features, labels = head_inputs(net, batches())
    images = torch.cat([images for images, _ in batches()])
    torch.testing.assert_close(features, model().eval()[0](images).detach())
    assert labels.tolist() == [4, 0, 2, 1, 3]


def test_head_inputs_leave_the_statistics_alone():
    net = model().train()
    head_inputs(net, batches())
    assert torch.equal(net[0][1].running_mean, torch.zeros(3))


def test_the_hook_is_gone_when_the_features_are_taken():
    net = model()
    head_inputs(net, batches())
    assert len(net[1]._forward_pre_hooks) == 0


def test_the_hook_is_gone_when_the_loader_fails():
    net = model()

    def failing():
        yield batches()[0]
        raise OSError("unreadable")

    with pytest.raises(OSError, match="unreadable"):
        head_inputs(net, failing())
    assert len(net[1]._forward_pre_hooks) == 0
