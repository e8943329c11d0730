import os
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet
from sklearn.datasets import load_digits

from dccl_flower.config import ConfError
from dccl_flower.data import images
from dccl_flower.data.images import CURE, known_shape, open_images
from dccl_flower.image_config import ImageDataConf


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("DCCL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pictures"
    path.mkdir()
    return path


NO_LABELS = "labels must be integers from 0, texts, or true and false"


def colour(red, green, blue, height=2, width=3):
    return Image.fromarray(np.full((height, width, 3), (red, green, blue), dtype=np.uint8))


def grey(value, height=2, width=3):
    return Image.fromarray(np.full((height, width), value, dtype=np.uint8))


def save(path, pictures, labels, **columns):
    rows = datasets.Dataset.from_dict({"image": pictures, "label": labels, **columns})
    rows.cast_column("image", datasets.Image()).to_parquet(path)


def save_colours(folder):
    save(folder / "train.parquet", [colour(1, 2, 3), colour(4, 5, 6), colour(7, 8, 9)], [0, 2, 1])
    save(folder / "test.parquet", [colour(9, 9, 9)], [3])


def opened(folder, **options):
    return open_images(ImageDataConf(name="mine", path=str(folder), **options))


def refusal(folder, **options):
    with pytest.raises(ConfError) as caught:
        opened(folder, **options)
    assert list(Path(os.environ["DCCL_CACHE"]).glob("images-*")) == []
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_digits_are_all_of_scikit_learns_with_16_mapped_to_255():
    digits = open_images(ImageDataConf())
    source = load_digits()
    expected = np.rint(source.images * 255 / 16).astype(np.uint8)
    labels = {image.tobytes(): label for image, label in zip(expected, source.target, strict=True)}
    pixels = np.concatenate([digits.train, digits.test])
    found = [labels.pop(image.tobytes()) for image in pixels]
    assert found == [*digits.train_labels, *digits.test_labels]
    assert labels == {}
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_digits_keep_a_quarter_of_every_class_for_the_test():
    digits = open_images(ImageDataConf())
    in_test = np.bincount(digits.test_labels)
    everywhere = in_test + np.bincount(digits.train_labels)
    assert (digits.train.shape, digits.test.shape) == ((1347, 8, 8, 1), (450, 8, 8, 1))
    assert np.abs(in_test - everywhere / 4).max() <= 1
    assert (digits.num_classes, digits.shape, digits.groups) == (10, (1, 8, 8), None)


def test_rgb_digits_have_three_equal_channels_and_a_key_of_their_own():
    plain, rgb = open_images(ImageDataConf()), open_images(ImageDataConf(rgb=True))
    assert rgb.shape == (3, 8, 8)
    assert all(np.array_equal(rgb.train[..., c], plain.train[..., 0]) for c in range(3))
    assert rgb.key != plain.key


def test_a_local_folder_is_decoded_pixel_by_pixel(folder):
    save_colours(folder)
    found = opened(folder)
    assert found.shape == (3, 2, 3)
    assert found.train[:, 0, 0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert found.test.tolist() == [[[[9, 9, 9]] * 3] * 2]
    assert (found.train_labels.tolist(), found.test_labels.tolist()) == ([0, 2, 1], [3])


def test_the_number_of_classes_counts_the_test_labels_too(folder):
    save_colours(folder)
    assert opened(folder).num_classes == 4


def test_arrays_are_memory_maps_that_cannot_be_written(folder):
    save_colours(folder)
    found = opened(folder)
    assert isinstance(found.train, np.memmap)
    assert (found.train.dtype, found.train_labels.dtype) == (np.uint8, np.int64)
    with pytest.raises(ValueError, match="read-only"):
        found.train[0] = 0


def test_a_local_folder_wins_over_the_name_digits(folder):
    save_colours(folder)
    assert len(open_images(ImageDataConf(name="digits", path=str(folder))).train) == 3


def test_shards_in_sub_folders_are_read_in_order(folder):
    (folder / "plain_text").mkdir()
    for shard in (1, 0):
        path = folder / "plain_text" / f"train-0000{shard}-of-00002.parquet"
        save(path, [grey(10 * shard)], [shard])
    save(folder / "test.parquet", [grey(5)], [0])
    assert opened(folder).train[:, 0, 0, 0].tolist() == [0, 10]


def test_grey_images_have_one_channel(folder):
    save(folder / "train.parquet", [grey(3), grey(4)], [0, 1])
    save(folder / "test.parquet", [grey(5)], [0])
    found = opened(folder)
    assert found.shape == (1, 2, 3)
    assert found.train[:, 1, 2, 0].tolist() == [3, 4]


def test_rgb_turns_grey_images_into_three_channels(folder):
    save(folder / "train.parquet", [grey(7), colour(1, 2, 3)], [0, 1])
    save(folder / "test.parquet", [grey(5)], [0])
    found = opened(folder, rgb=True)
    assert found.train[:, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3]]


def test_grey_among_colour_images_is_refused_without_rgb(folder):
    save(folder / "train.parquet", [grey(7), colour(1, 2, 3)], [0, 1])
    save(folder / "test.parquet", [grey(5)], [0])
    assert (
        refusal(folder)
        == f"data.image_column=image: row 1 of train is (2, 3, 3), others have (2, 3, 1); {CURE}"
    )


def test_images_of_unequal_size_are_refused_with_the_row(folder):
    pictures = [grey(1), grey(2), grey(3, height=4)]
    save(folder / "train.parquet", pictures, [0, 1, 0])
    save(folder / "test.parquet", [grey(5)], [0])
    assert refusal(folder).startswith("data.image_column=image: row 2 of train is (4, 3, 1), ")


def test_the_row_of_an_odd_image_is_told(folder):
    save(folder / "train.parquet", [grey(1), grey(2), grey(3), grey(4, width=5)], [0, 1, 0, 1])
    save(folder / "test.parquet", [grey(5)], [0])
    assert (
        refusal(folder)
        == f"data.image_column=image: row 3 of train is (2, 5, 1), others have (2, 3, 1); {CURE}"
    )


def test_what_is_known_of_built_in_sets_is_so():
    for name in ("digits", "noise"):
        for options in ({}, {"image_size": 12}):
            conf = ImageDataConf(name=name, **options)
            images = open_images(conf)
            assert known_shape(conf) == (images.shape, images.num_classes)
    assert known_shape(ImageDataConf(name="digits", path="elsewhere")) is None
    assert known_shape(ImageDataConf(name="some/set")) is None


def test_images_of_several_sizes_are_brought_to_one(folder):
    pictures = [colour(9, 8, 7), colour(9, 8, 7, height=4, width=4), grey(3, height=10, width=7)]
    save(folder / "train.parquet", pictures, [0, 1, 0])
    save(folder / "test.parquet", [grey(5)], [0])
    images = opened(folder, image_size=4, rgb=True)
    assert images.train.shape == (3, 4, 4, 3)
    assert np.array_equal(images.train[0], images.train[1])
    assert images.shape == (3, 4, 4)
    assert images.key != opened(folder, image_size=8, rgb=True).key


def test_digits_are_brought_to_a_size_too():
    digits = open_images(ImageDataConf(image_size=16))
    assert digits.train.shape[1:] == digits.test.shape[1:] == (16, 16, 1)


def test_decoding_keeps_the_order(folder):
    save(folder / "train.parquet", [grey(v) for v in range(5)], [0] * 5)
    save(folder / "test.parquet", [grey(5)], [0])
    assert opened(folder).train[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_test_images_of_another_size_than_the_training_images_are_refused(folder):
    save(folder / "train.parquet", [grey(1)], [0])
    save(folder / "test.parquet", [grey(5, height=4)], [0])
    assert (
        refusal(folder)
        == f"data.image_column=image: row 0 of test is (4, 3, 1), others have (2, 3, 1); {CURE}"
    )


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    path = tmp_path / "nowhere"
    assert refusal(path) == f"data.path={path}: no such folder"


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_folder_without_one_of_the_splits_is_refused(folder, split):
    other = {"train": "test", "test": "train"}[split]
    save(folder / f"{other}.parquet", [grey(1)], [0])
    either = f"no {split}*.parquet, no {split}/*.parquet and no images in {split}/CLASS/"
    assert refusal(folder) == f"data.path={folder}: holds {either}"


@pytest.mark.parametrize("key", ["image_column", "label_column", "group_column"])
def test_an_absent_column_is_refused_with_those_there(folder, key):
    save_colours(folder)
    assert refusal(folder, **{key: "img"}) == f"data.{key}=img: the data have columns image, label"


@pytest.mark.parametrize("labels", [[0, -1], [0.0, 1.0]])
def test_labels_that_are_no_integers_from_0_are_refused(folder, labels):
    save(folder / "train.parquet", [grey(1), grey(2)], labels)
    save(folder / "test.parquet", [grey(5)], labels[:1])
    assert refusal(folder) == "data.label_column=label: " + NO_LABELS


def test_an_image_column_without_images_is_refused(folder):
    save_colours(folder)
    assert "data.image_column=label" in refusal(folder, image_column="label")


def test_a_broken_parquet_file_is_refused(folder):
    save_colours(folder)
    (folder / "test.parquet").write_bytes(b"no parquet")
    assert "data.path=" in refusal(folder)


@pytest.mark.parametrize("writers", [["eve", "bob", "eve"], [30, 10, 30]])
def test_the_group_column_is_coded_from_0_in_order(folder, writers):
    pictures = [grey(1), grey(2), grey(3)]
    save(folder / "train.parquet", pictures, [0, 1, 0], writer=writers)
    save(folder / "test.parquet", [grey(5)], [0], writer=writers[:1])
    assert opened(folder, group_column="writer").groups.tolist() == [1, 0, 1]
    assert opened(folder).groups is None


def test_other_column_names_are_followed(folder):
    for split, value in (("train", 3), ("test", 5)):
        rows = datasets.Dataset.from_dict({"img": [grey(value)], "fine": [2], "coarse": [0]})
        rows.cast_column("img", datasets.Image()).to_parquet(folder / f"{split}.parquet")
    found = opened(folder, image_column="img", label_column="fine")
    assert (found.train[0, 0, 0, 0], found.train_labels[0], found.test_labels[0]) == (3, 2, 2)


def test_a_second_open_does_not_decode_again(folder, monkeypatch):
    save_colours(folder)
    first = opened(folder)
    monkeypatch.setattr(images, "_decode", lambda *_: pytest.fail("decoded again"))
    second = opened(folder)
    assert second.key == first.key
    assert np.array_equal(second.train, first.train)


def test_changed_files_are_decoded_anew(folder):
    save_colours(folder)
    before = opened(folder)
    save(folder / "train.parquet", [colour(0, 0, 0), colour(1, 1, 1)], [0, 1])
    after = opened(folder)
    assert after.key != before.key
    assert after.train[:, 0, 0, 0].tolist() == [0, 1]


def test_a_name_that_the_hub_does_not_know_is_refused(monkeypatch):
    def refuse(name):
        raise ConnectionError(f"no {name} here\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ConfError) as caught:
        open_images(ImageDataConf(name="no/such"))
    assert str(caught.value) == "data.name=no/such: cannot be loaded (no no/such here)"


def test_an_error_of_the_hub_without_text_is_reported(monkeypatch):
    def refuse(name):
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ConfError, match="no/such"):
        open_images(ImageDataConf(name="no/such"))


def test_data_without_a_test_split_are_refused(monkeypatch):
    rows = datasets.Dataset.from_dict({"image": [grey(1)], "label": [0]})
    splits = datasets.DatasetDict({"train": rows, "validation": rows})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits)
    with pytest.raises(ConfError) as caught:
        open_images(ImageDataConf(name="some/set"))
    assert str(caught.value) == (
        "data.name=some/set: has no split 'test', only train, validation; "
        "name one as data.test_split, or hold a part out with data.test_share=0.2"
    )


def test_the_validation_split_scores_where_it_is_named(monkeypatch):
    rows = datasets.Dataset.from_dict({"image": [grey(1)], "label": [0]})
    splits = datasets.DatasetDict({"train": rows, "validation": rows})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits)
    assert len(open_images(ImageDataConf(name="some/set", test_split="validation")).test) == 1


@pytest.mark.parametrize("file", ["validation-00000.parquet", "val.parquet", "dev/0000.parquet"])
def test_a_validation_file_scores_where_it_is_named(folder, file):
    (folder / "dev").mkdir()
    save(folder / "train.parquet", [grey(1), grey(2)], [0, 1])
    save(folder / file, [grey(3)], [1])
    assert opened(folder, test_split="validation").test_labels.tolist() == [1]


def test_a_share_of_the_training_images_scores_where_there_is_no_other(folder):
    save(folder / "train.parquet", [grey(value) for value in range(10)], list(range(10)))
    found = opened(folder, test_share=0.3)
    assert (len(found.train), len(found.test)) == (7, 3)
    assert sorted([*found.train_labels, *found.test_labels]) == list(range(10))
    assert opened(folder, test_share=0.3).test_labels.tolist() == found.test_labels.tolist()


def test_data_with_a_test_set_of_their_own_hold_none_out():
    with pytest.raises(ConfError, match=r"^data\.test_share=0\.2: digits has a test set"):
        open_images(ImageDataConf(name="digits", test_share=0.2))


def test_folders_of_images_are_classes_by_name(folder):
    for split, values in {"train": (1, 2), "test": (3,)}.items():
        for name in ("dog", "cat"):
            (folder / split / name).mkdir(parents=True)
            for value in values:
                grey(value).save(folder / split / name / f"train{value}.png")
    found = opened(folder)
    assert found.class_names == ["cat", "dog"]
    assert (found.train_labels.tolist(), found.test_labels.tolist()) == ([0, 0, 1, 1], [0, 1])
    assert found.train.shape == (4, 2, 3, 1)


def test_folders_of_images_without_splits_hold_a_share_out(folder):
    for name in ("dog", "cat"):
        (folder / name).mkdir()
        for value in range(4):
            grey(value).save(folder / name / f"{value}.png")
    found = opened(folder, test_share=0.25)
    assert (len(found.train), len(found.test), found.class_names) == (6, 2, ["cat", "dog"])


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["dog", "cat"], ["cat", "dog"], [1, 0]),
        ([True, False], ["False", "True"], [1, 0]),
        ([["dog"], ["cat"]], ["cat", "dog"], [1, 0]),
    ],
)
def test_labels_of_text_and_truth_are_mapped_in_order(folder, labels, names, numbers):
    save_both(folder, [grey(1), grey(2)], labels)
    found = opened(folder)
    assert found.class_names == names
    assert found.train_labels.tolist() == numbers


def test_classes_without_names_go_by_their_numbers(folder):
    save_both(folder, [grey(1), grey(2)], [2, 0])
    assert opened(folder).class_names == ["0", "1", "2"]


def test_noise_has_the_shape_of_cifar10_and_every_class():
    noise = open_images(ImageDataConf(name="noise"))
    assert (noise.shape, noise.num_classes) == ((3, 32, 32), 10)
    assert np.array_equal(np.bincount(noise.test_labels), np.full(10, 2))
    assert len(np.unique(noise.train[:100].reshape(100, -1), axis=0)) == 100


def deep(value):
    return Image.fromarray(np.full((2, 3), value, dtype=np.uint16))


def save_both(folder, pictures, labels=None, **columns):
    for split in ("train", "test"):
        save(folder / f"{split}.parquet", pictures, labels or list(range(len(pictures))), **columns)


def save_raw(folder, images, labels):
    for split in ("train", "test"):
        rows = datasets.Dataset.from_dict({"image": images, "label": labels})
        rows.to_parquet(folder / f"{split}.parquet")


@pytest.mark.parametrize("rgb", [False, True])
@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_of_more_than_8_bits_are_refused_and_never_clipped(folder, mode, rgb):
    image = deep(3000) if mode == "I;16" else grey(3).convert(mode)
    save_both(folder, [image])
    assert refusal(folder, rgb=rgb) == (
        f"data.image_column=image: row 0 of train has mode {mode}, 16 or 32 bits a channel; scale "
        "it to 8 bits"
    )


@pytest.mark.parametrize("mode", ["1", "LA", "P", "CMYK"])
def test_other_modes_are_read_with_rgb_alone_which_the_refusal_says(folder, mode):
    image = colour(255, 255, 255)
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    save_both(folder, [image])
    assert refusal(folder) == (
        f"data.image_column=image: row 0 of train has mode {mode}; allowed are L, RGB and RGBA, "
        "and others with data.rgb=true"
    )
    assert opened(folder, rgb=True).train.tolist() == [[[[255, 255, 255]] * 3] * 2]


def test_a_row_without_an_image_is_named(folder):
    save_both(folder, [grey(1), None, grey(2)])
    assert refusal(folder) == "data.image_column=image: row 1 of train holds no image"


def test_a_damaged_image_is_refused_with_its_row(folder):
    picture = BytesIO()
    grey(1).save(picture, "PNG")
    save_raw(folder, [picture.getvalue(), b"no picture"], [0, 1])
    assert refusal(folder).startswith(
        "data.image_column=image: row 1 of train holds a damaged image (cannot identify"
    )


def test_a_damaged_image_is_refused_where_the_file_says_that_it_is_one(folder):
    for split in ("train", "test"):
        rows = datasets.Dataset.from_dict({"image": [b"no picture"], "label": [0]})
        rows.cast_column("image", datasets.Image()).to_parquet(folder / f"{split}.parquet")
    assert refusal(folder).startswith(
        "data.image_column=image: row 0 of train holds a damaged image (cannot identify"
    )


@pytest.mark.parametrize(
    "pixels", [[[7, 9], [1, 255]], [[[7], [9]], [[1], [255]]]], ids=["H, W", "H, W, 1"]
)
def test_arrays_of_bytes_are_images(folder, pixels):
    save_raw(folder, [pixels], [0])
    assert opened(folder).train.tolist() == [[[[7], [9]], [[1], [255]]]]


@pytest.mark.parametrize(
    "pixels", [[[0.5, 1.0]], [[float("nan")]], [[256]], [[-1]], [1, 2], [[[[1]]]], [[1], [2, 3]]]
)
def test_other_arrays_are_refused(folder, pixels):
    save_raw(folder, [pixels], [0])
    assert refusal(folder) == (
        "data.image_column=image: row 0 of train holds an array that is no image; expected "
        "integers from 0 to 255, (H, W) or (H, W, C)"
    )


def test_labels_of_one_column_are_read_as_a_row(folder):
    save_both(folder, [grey(1), grey(2)], [[1], [0]])
    assert opened(folder).train_labels.tolist() == [1, 0]


def test_class_labels_are_their_numbers(folder):
    rows = datasets.Dataset.from_dict({"image": [grey(1), grey(2)], "label": [1, 0]})
    rows = rows.cast_column("image", datasets.Image())
    rows = rows.cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    for split in ("train", "test"):
        rows.to_parquet(folder / f"{split}.parquet")
    assert opened(folder).train_labels.tolist() == [1, 0]
    assert opened(folder).class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        ([[0, 1], [1, 0]], "must hold one label for each image, not (2,)"),
        ([[0], [1, 0]], NO_LABELS),
        ([0, None], NO_LABELS),
        ([0.0, float("nan")], NO_LABELS),
    ],
)
def test_labels_of_other_shapes_are_refused(folder, labels, what):
    save_both(folder, [grey(1), grey(2)], labels)
    assert refusal(folder) == f"data.label_column=label: {what}"


@pytest.mark.parametrize("writers", [["a", None], [1.0, float("nan")], [["a"], ["b"]]])
def test_rows_without_a_group_are_refused(folder, writers):
    save_both(folder, [grey(1), grey(2)], writer=writers)
    assert refusal(folder, group_column="writer") == (
        "data.group_column=writer: must name one group for each image"
    )


def test_an_empty_split_is_refused_and_an_empty_shard_left_out(folder):
    save_both(folder, [grey(1)])
    empty = parquet.read_table(folder / "train.parquet").slice(0, 0)
    parquet.write_table(empty, folder / "train-1.parquet")
    assert len(opened(folder).train) == 1
    parquet.write_table(empty, folder / "train.parquet")
    with pytest.raises(ConfError) as caught:
        opened(folder)
    assert str(caught.value) == f"data.path={folder}: the split 'train' is empty"


def test_an_empty_split_of_the_hub_is_refused(monkeypatch):
    rows = datasets.Dataset.from_dict({"image": [grey(1)], "label": [0]})
    splits = datasets.DatasetDict({"train": rows, "test": rows.select([])})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits)
    with pytest.raises(ConfError, match=r"^data\.name=some/set: the split 'test' is empty"):
        open_images(ImageDataConf(name="some/set"))


@pytest.mark.parametrize("name", ["[run 1]", "a*b", "q?", "[!x]", "{x}", "100% é"])
def test_a_path_is_read_as_text(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    save_colours(folder)
    assert len(opened(folder).train) == 3
