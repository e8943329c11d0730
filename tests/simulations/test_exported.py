"""What is exported gives the run's logits, without this package."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from stopped_runs import run_once
from torch import nn

from dccl_flower import load_run
from dccl_flower.config import ConfError
from dccl_flower.simulations import exported
from dccl_flower.simulations.exported import FORMATS, export_run
from dccl_flower.simulations.superlink import RunError

SMALL = ("data.train_fraction=0.5", "devices.count=2", "rounds.count=1", "rounds.local_steps=4")
CLOUD = (*SMALL, "pretrain.epochs=1", "distil.epochs=1")
ALONE = """
import sys
sys.modules["dccl_flower"] = None  # whose import would fail
import torch
file, given, found = sys.argv[1:]
images = torch.load(given)
if file.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(file)
    name = session.get_inputs()[0].name
    logits = torch.from_numpy(session.run(None, {name: images.numpy()})[0])
else:
    logits = torch.export.load(file).module()(images)
torch.save(logits, found)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_once("digits", CLOUD, folder)
    return folder


@pytest.mark.parametrize("to", FORMATS)
def test_files_give_the_runs_logits_without_the_package(run, tmp_path, to):
    files = {file.stem: file for file in export_run(run, to, tmp_path / to)}
    modules = load_run(run).modules
    assert set(files) == set(modules) == {"served", "device"}
    images = torch.rand(5, 1, 8, 8)
    torch.save(images, tmp_path / "images")
    for name, file in files.items():
        call = [sys.executable, "-c", ALONE, file, tmp_path / "images", tmp_path / "logits"]
        subprocess.run(call, check=True, capture_output=True)
        with torch.no_grad():
            logits = modules[name](images)
        assert torch.allclose(torch.load(tmp_path / "logits"), logits, atol=exported.TOLERANCE)


def test_they_lie_in_the_run_s_folder_and_are_not_written_over(run):
    files = export_run(run, "torch")
    assert {file.parent for file in files} == {run / "export-torch"}
    with pytest.raises(ConfError, match=r"export-torch: is there already$"):
        export_run(run, "torch")


class Draws(nn.Module):
    def forward(self, images):
        return images.flatten(1) + torch.rand(images.shape[0], 1)


class Branches(nn.Module):
    def forward(self, images):
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


@pytest.mark.parametrize(
    ("model", "told"),
    [(Draws(), "logits differ by"), (Branches(), "served cannot be exported")],
)
def test_what_cannot_be_exported_is_told_in_one_line(run, tmp_path, monkeypatch, model, told):
    trained = load_run(run)
    trained.modules["served"] = model
    monkeypatch.setattr(exported, "load_run", lambda folder: trained)
    with pytest.raises(RunError) as caught:
        export_run(run, "torch", tmp_path / "out")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
