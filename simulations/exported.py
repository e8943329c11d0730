"""``dccl export``: a finished run's models as files that load without this package."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from dccl_flower.config import ConfError
from dccl_flower.files import write_folder
from dccl_flower.simulations.superlink import RunError
from dccl_flower.simulations.trained import load_run

TOLERANCE = 1e-4
BATCH = 2
Writer = Callable[[nn.Module, torch.Tensor, Path], None]


def export_run(folder: Path, to: str, output: Path | None = None) -> list[Path]:
    """Write what a finished run serves, and what its devices do, and return the files.

    They map images (N, C, H, W) in 0..1 to logits, for any N. ``torch`` and ``executorch-ready``
    (of core operators alone) are read by ``torch.export.load``, ``onnx`` by any ONNX runtime.
    Raises ConfError for a folder without such a run or models and for an output that is there
    already, and RunError where a model cannot be
    exported, or gives something else than before.
    """
    trained = load_run(folder)
    write, suffix = FORMATS[to]
    images = torch.rand(BATCH, *trained.shape, generator=torch.Generator().manual_seed(0))
    target = (output or folder / f"export-{to}").expanduser().resolve()
    if target.exists():
        raise ConfError(f"--output {target}: is there already")

    def fill(aside: Path) -> None:
        for name, module in trained.modules.items():
            file = aside / f"{name}{suffix}"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    write(module, images, file)
            except (OSError, RunError):
                raise
            except Exception as error:  # the exporters raise many kinds
                cause = next(iter(str(error).splitlines()), type(error).__name__)
                raise RunError(f"{folder}: {name} cannot be exported ({cause[:200]})") from error

    write_folder(target, fill)
    return sorted(target.iterdir())


def program_of(module: nn.Module, images: torch.Tensor) -> ExportedProgram:
    """Return a model's graph for any number of images."""
    return torch.export.export(module.eval(), (images,), dynamic_shapes=({0: Dim("batch")},))


def _write_torch(module: nn.Module, images: torch.Tensor, file: Path) -> None:
    torch.export.save(program_of(module, images), file)
    _check(module, images, lambda batch: torch.export.load(file).module()(batch))


def _write_core(module: nn.Module, images: torch.Tensor, file: Path) -> None:
    torch.export.save(program_of(module, images).run_decompositions(), file)
    _check(module, images, lambda batch: torch.export.load(file).module()(batch))


def _write_onnx(module: nn.Module, images: torch.Tensor, file: Path) -> None:
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        needs = 'needs the packages of pip install "dccl-flower[onnx]"'
        raise RunError(f"--to onnx: {needs}") from error
    program = torch.onnx.export(program_of(module, images), verbose=False)
    assert program is not None
    program.save(file, external_data=False)

    def run(batch: torch.Tensor) -> torch.Tensor:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (name,) = (given.name for given in session.get_inputs())
        return torch.from_numpy(session.run(None, {name: batch.numpy()})[0])

    _check(module, images, run)


def _check(
    module: nn.Module, images: torch.Tensor, run: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Raise RunError where what was written differs from the model, for one image or several."""
    with torch.no_grad():
        for batch in (images, images[:1]):
            apart = (module(batch) - run(batch)).abs().max().item()
            if not apart <= TOLERANCE:
                raise RunError(f"export: logits differ by {apart:.2g}, more than {TOLERANCE:.0e}")


FORMATS: Mapping[str, tuple[Writer, str]] = {
    "torch": (_write_torch, ".pt2"),
    "onnx": (_write_onnx, ".onnx"),
    "executorch-ready": (_write_core, ".pt2"),
}
