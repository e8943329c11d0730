from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.experiment import open_experiment
from dccl_flower.strategies.dc_ccl.kind import build_cloud
from dccl_flower.strategies.dc_ccl.prepared import prepared_key

TINY = ["pretrain.epochs=1", "distil.epochs=1", "data.train_fraction=0.3"]
BOTH_PHASES = ["pretrain", "distil"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def experiment_of(*overrides):
    return open_experiment(load_conf("digits", [*TINY, *overrides]))


def prepared(*overrides):
    """Return a prepared cloud, the phases it went through, and the lines that were noted."""
    phases, notes = [], []
    experiment = experiment_of(*overrides)
    cloud = build_cloud(experiment, lambda phase, *_: phases.append(phase))
    handler = logging.Handler()
    handler.emit = lambda record: notes.append(record.getMessage())
    logging.getLogger("dccl_flower").addHandler(handler)
    try:
        cloud.prepare()
    finally:
        logging.getLogger("dccl_flower").removeHandler(handler)
    return cloud, phases, notes


def reused(*overrides):
    return prepared("runtime.reuse=true", *overrides)


def entry_of(cache):
    (folder,) = (path for path in cache.glob("cloud-*") if path.is_dir())
    return folder


def assert_equal_clouds(left, right):
    for role, state in left.state_dict().items():
        other = right.state_dict()[role]
        assert list(state) == list(other)
        assert all(torch.equal(tensor, other[name]) for name, tensor in state.items()), role


def test_the_second_cloud_takes_what_the_first_has_left(cache):
    first, phases, notes = reused()
    assert (phases, notes) == (BOTH_PHASES, [])
    second, phases, notes = reused()
    assert (phases, notes) == ([], [])
    assert second.prepared
    assert_equal_clouds(second, first)


def test_what_is_reused_is_what_is_computed_without_reuse(cache):
    reused()
    plain, phases, _ = prepared()
    assert phases == BOTH_PHASES
    assert_equal_clouds(reused()[0], plain)


def test_a_shared_stem_is_reused_too(cache):
    # The stem is frozen in co-submodel and mimic, and trained in the cloud submodel alone.
    options = ["model.base=small_cnn", "model.shared_stem=true"]
    first, _, _ = reused(*options)
    second, phases, _ = reused(*options)
    assert phases == []
    assert_equal_clouds(second, first)


def test_without_reuse_nothing_is_written(cache):
    _, phases, _ = prepared()
    assert phases == BOTH_PHASES
    assert list(cache.glob("cloud-*")) == []


def cut_short(folder):
    path = folder / "mimic.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def alter(folder):
    path = folder / "cloud_submodel.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def swap(folder):
    paths = [folder / f"{name}.safetensors" for name in ("cloud_submodel", "mimic")]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content)


DAMAGE = {
    "a file cut short": cut_short,
    "a byte altered": alter,
    "files swapped": swap,
    "a model missing": lambda folder: (folder / "mimic.safetensors").unlink(),
    "no digest": lambda folder: (folder / "SHA256").unlink(),
    "a digest that is no text": lambda folder: (folder / "SHA256").write_bytes(b"\xff"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_entry_is_computed_anew_after_one_line(cache, damage):
    first, _, _ = reused()
    folder = entry_of(cache)
    damage(folder)
    again, phases, notes = reused()
    assert phases == BOTH_PHASES
    (note,) = notes
    assert note.startswith(f"cache file {folder}/")
    assert note.endswith(" is damaged: making it anew")
    assert_equal_clouds(again, first)
    _, phases, notes = reused()
    assert (phases, notes) == ([], [])


def test_a_failure_leaves_no_entry(cache):
    experiment = experiment_of("runtime.reuse=true")
    cloud = build_cloud(experiment, lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cloud.prepare()
    assert [path for path in cache.glob("cloud-*") if path.is_dir()] == []
    assert reused()[1] == BOTH_PHASES


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "pretrain.lr=0.05",
        "pretrain.epochs=2",
        "pretrain.mask_unseen=true",
        "distil.lr=0.002",
        "distil.mixup=true",
        "model.co_ratio=0.25",
        "split.mix=0.2",
        "data.validation=0.2",
        "data.train_fraction=0.5",
        "data.augment=flip_crop",
        "data.rgb=true",
        "runtime.mixed_precision=true",
        "runtime.channels_last=true",
        "runtime.server_threads=1",
    ],
)
def test_whatever_decides_the_weights_is_part_of_the_key(cache, override):
    assert prepared_key(experiment_of(override)) != prepared_key(experiment_of())


@pytest.mark.parametrize(
    "override",
    [
        "devices.count=7",
        "devices.partitioner=dirichlet",
        "rounds.count=3",
        "rounds.cloud_batch_size=50",
        "rounds.scaffold=true",
        "normalisation=group",
        "control=none",
        "model.co_start=mimic",
        "loss=ce",
        "fusion=class_wise_head",
        "exemplars=10",
        "runtime.workers=1",
        "runtime.reuse=true",
        "name=other",
    ],
)
def test_what_only_the_rounds_know_is_not_part_of_the_key(cache, override):
    assert prepared_key(experiment_of(override)) == prepared_key(experiment_of())


@pytest.mark.parametrize("override", ["devices.count=7", "normalisation=group", "rounds.count=3"])
def test_an_entry_serves_every_federation_of_its_cloud(cache, override):
    first, _, _ = reused()
    second, phases, _ = reused(override)
    assert phases == []
    for role in ("cloud_submodel", "mimic"):
        state = first.state_dict()[role]
        assert all(torch.equal(t, second.state_dict()[role][n]) for n, t in state.items())


def test_another_seed_is_computed_beside_the_first(cache):
    reused()
    assert reused("seed=1")[1] == BOTH_PHASES
    assert reused()[1] == reused("seed=1")[1] == []


def test_of_two_at_the_same_time_one_computes_and_the_other_waits(cache):
    experiment_of()  # decoded before, so that the two meet at the cloud's entry
    with ThreadPoolExecutor(2) as pool:
        (first, *one), (second, *other) = pool.map(lambda _: reused(), range(2))
    assert sorted(each[0] for each in (one, other)) == [[], BOTH_PHASES]
    assert_equal_clouds(first, second)
