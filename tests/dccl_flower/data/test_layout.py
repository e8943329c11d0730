from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dccl_flower.config import ConfError
from dccl_flower.data.layout import data_files

WANTED = {"train": "train", "test": "test"}


def found(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return {
        split: [str(Path(file).relative_to(folder.resolve())) for file in files]
        for split, files in data_files(str(folder), WANTED).items()
    }


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("train-0000.parquet", "test-0000.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("training.parquet", "testset0.parquet"),
        ("Train/a.parquet", "digits_TEST.parquet"),
        ("train/train.parquet", "train/test.parquet"),
        ("train.parquet/part-0.parquet", "test.parquet/part-0.parquet"),
        ("train.parquet", "test_train.parquet"),
        ("test/train/0.parquet", "train/test/0.parquet"),
    ],
)
def test_each_file_is_of_one_split(tmp_path, train, test):
    assert found(tmp_path, train, test) == {"train": [train], "test": [test]}


def test_shards_come_sorted(tmp_path):
    names = ("b/train/1.parquet", "b/train/0.parquet", "a/train/2.parquet", "test.parquet")
    assert found(tmp_path, *names)["train"] == [names[2], names[1], names[0]]


def test_files_named_after_their_split_win_over_those_in_folders_of_its_name(tmp_path):
    named = ("data/train-0.parquet", "data/test-0.parquet")
    both = found(tmp_path, *named, "default/train/0.parquet", "default/test/0.parquet")
    assert both == {"train": [named[0]], "test": [named[1]]}


@pytest.mark.parametrize(
    "other",
    ["constrained.parquet", "contest.parquet", "validation.parquet", "._train.parquet",
     ".cache/train.parquet", "trains.csv"],
)  # fmt: skip
def test_files_of_no_split_are_left_out(tmp_path, other):
    assert found(tmp_path, "train.parquet", "test.parquet", other) == {
        "train": ["train.parquet"],
        "test": ["test.parquet"],
    }


def test_the_folder_s_own_name_tells_nothing(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    with pytest.raises(ConfError, match="holds no train"):
        found(folder, "0.parquet", "test.parquet")


parts = st.lists(st.sampled_from(["train", "test", "a", "x-1", "retrain"]), min_size=1, max_size=4)


@given(st.lists(parts, min_size=1, max_size=8))
def test_no_file_is_counted_twice(tmp_path_factory, paths):
    folder = tmp_path_factory.mktemp("layout")
    names = {"/".join(path) + ".parquet" for path in paths}
    files = found(folder, "train.parquet", "test.parquet", *names)
    every = files["train"] + files["test"]
    assert len(every) == len(set(every))
