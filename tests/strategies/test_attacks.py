"""What messages tell of samples; ``pytest -s`` prints the figures of docs/privacy.md.

Labels of a single sample are read off a head's gradient as in Zhao, Mopuri and Bilen, "iDLG:
Improved Deep Leakage from Gradients", arXiv 2001.02610; those of more by its mean over classes.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_experiments import halves, small_experiment
from torch.nn import functional

from dccl_flower.data.batches import as_batches
from dccl_flower.learning.head_tuning import HeadPrivacy, head_gradient
from dccl_flower.models.zoo import PlainCNN
from dccl_flower.strategies.heterofl import measure_static

TRIES = 40


@pytest.fixture(scope="module")
def world():
    """Co-submodel and mimic as both sides have them, images to attack, and the server's own."""
    experiment = small_experiment("pretrain.epochs=3", "distil.epochs=3")
    server, _ = halves(experiment)
    cloud = server.cloud
    unseen = experiment.scoring_loader().in_batches_of(1000)
    return cloud.co_submodel, cloud.mimic, *next(iter(unseen)), cloud_batch(experiment)


def cloud_batch(experiment):
    return next(iter(experiment.cloud_loader(1000).in_fixed_order()))


def told_by(world, rows, privacy, seed):
    """Return the gradient that goes up of a device with these images."""
    co, mimic, images, labels, _ = world
    batches = iter([(images[rows], labels[rows])])
    gradient, _ = head_gradient(co, mimic, batches, functional.cross_entropy, 1)
    return privacy.covered(gradient, torch.Generator().manual_seed(seed))


@torch.no_grad()
def counts_from(world, gradient, size):
    """Return the samples a class (classes,) that best explain the gradient of the head's bias.

    Per class it is the mean probability less the share of samples, and the server knows what
    probabilities its own images of a class are given.
    """
    co, mimic, _, _, (images, labels) = world
    given = torch.softmax(co(images) + mimic(images), 1).double()
    classes = range(given.shape[1])
    known = [given[labels == c].mean(0) if (labels == c).any() else given.mean(0) for c in classes]
    bias = next(g for name, g in gradient.items() if name.endswith("bias")).double()
    system = torch.stack(known).T - torch.eye(len(known))
    system = torch.cat([system, torch.ones(1, len(known))])
    target = torch.cat([bias, torch.ones(1)]).double()
    shares = torch.linalg.lstsq(system, target.unsqueeze(1)).solution.squeeze(1).clamp(min=0)
    counts = (shares / shares.sum() * size).floor()
    left = shares / shares.sum() * size - counts
    counts[left.argsort(descending=True)[: size - int(counts.sum())]] += 1
    return counts


def recovered(world, size, privacy):
    """Return the share of labels that are recovered, over many devices of so many samples."""
    labels, hits = world[3], 0.0
    for seed in range(TRIES):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        rows = order[:size]
        counts = counts_from(world, told_by(world, rows, privacy, seed), size)
        hits += torch.minimum(counts, labels[rows].bincount(minlength=len(counts))).sum().item()
    return hits / (TRIES * size)


@pytest.mark.parametrize(("size", "least"), [(1, 0.95), (2, 0.95), (16, 0.9), (64, 0.9)])
def test_a_head_gradient_tells_the_labels_of_few_samples(world, size, least):
    plain = recovered(world, size, HeadPrivacy())
    noisy = recovered(world, size, HeadPrivacy(clip=0.5, noise=1.0))
    print(f"\nlabels recovered of {size}: {plain:.2f}, clipped with noise {noisy:.2f}")
    assert plain >= least
    assert noisy <= 0.75 * plain


def test_a_head_gradient_of_one_sample_tells_its_features(world):
    co, _, images, _, _ = world
    gradient = told_by(world, torch.tensor([5]), HeadPrivacy(), 0)
    weight, bias = gradient["head.weight"], gradient["head.bias"]
    row = bias.abs().argmax()
    with torch.no_grad():
        features = co.features(images[5:6]).mean((2, 3))[0]
    torch.testing.assert_close(weight[row] / bias[row], features, rtol=1e-3, atol=1e-4)


def test_batch_statistics_of_one_image_tell_its_sums():
    torch.manual_seed(0)
    model = PlainCNN([16, "pool", 16], 1, 10)
    image = torch.rand(1, 1, 8, 8)
    measure_static(model, as_batches([(image, torch.tensor([0]))]), "cpu")
    # The first norm's means are linear in nine sums over the image, each shifted by a pixel.
    kernels = model.features[0].weight.detach().reshape(16, 9).double().numpy()
    means = model.features[1].running_mean.double().numpy()
    sums, *_ = np.linalg.lstsq(kernels, 64 * means, rcond=None)
    padded = functional.pad(image[0, 0], (1, 1, 1, 1)).double().numpy()
    true = [padded[i : i + 8, j : j + 8].sum() for i in range(3) for j in range(3)]
    print(f"\nlargest error of nine sums of one image: {np.abs(sums / true - 1).max():.1e}")
    np.testing.assert_allclose(sums, true, rtol=1e-3)
