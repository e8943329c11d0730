"""Images of any size and mode get the classes that the run's model gives them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from stopped_runs import run_once

from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.data.images import open_images
from dccl_flower.simulations.predicted import draw_predictions, predict_images

SMALL = ("devices.count=2", "rounds.count=2", "pretrain.epochs=6", "distil.epochs=2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_once("digits", SMALL, folder)
    return folder


@pytest.fixture
def pictures(tmp_path):
    images = open_images(load_conf("digits").data)
    paths = []
    for row in range(12):
        path = tmp_path / f"{row}.png"
        image = Image.fromarray(images.test[row, ..., 0])
        image.convert("RGB").resize((16, 16), Image.Resampling.NEAREST).save(path)
        paths.append(path)
    return paths, images.test_labels[:12]


def test_most_images_get_their_class(run, pictures):
    paths, labels = pictures
    found = predict_images(run, paths)
    assert [each.image for each in found] == paths
    likeliest = [int(each.classes[0][0]) for each in found]
    assert np.mean(np.array(likeliest) == labels) > 0.6
    for each in found:
        shares = [share for _, share in each.classes]
        assert len(shares) == 3
        assert shares == sorted(shares, reverse=True)


def test_a_device_s_model_and_all_classes_may_be_asked_for(run, pictures):
    (each, *_) = predict_images(run, pictures[0][:1], model="device", top=99)
    assert sorted(name for name, _ in each.classes) == [str(digit) for digit in range(10)]
    assert sum(share for _, share in each.classes) == pytest.approx(1)


def test_a_picture_is_drawn(run, pictures, tmp_path):
    draw_predictions(predict_images(run, pictures[0][:5]), tmp_path / "shown.png")
    with Image.open(tmp_path / "shown.png") as shown:
        assert shown.width > shown.height > 100
        assert len(shown.getcolors(1 << 24)) > 10


def test_bad_input_is_refused_in_one_line(run, tmp_path):
    def refusal(*images, **options):
        with pytest.raises(ConfError) as caught:
            predict_images(run, images, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (tmp_path / "text.png").write_text("no image")
    assert refusal(tmp_path / "text.png") == f"{tmp_path}/text.png: is no image"
    missing = tmp_path / "missing.png"
    assert refusal(missing) == f"{missing}: No such file or directory"
    assert refusal(missing, model="cloud") == f"--model cloud: {run} has served, device"
