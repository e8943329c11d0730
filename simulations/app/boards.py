"""Where what a run measures is drawn while it goes on: TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from dccl_flower.config import Conf, ConfError

PROJECT = "dccl-flower"


@dataclass(frozen=True)
class RunFacts:
    """What a board may want to know: the configuration, the run directory, rounds done before."""

    conf: Conf
    folder: Path
    after: int

    @property
    def title(self) -> str:
        """What the run is called."""
        return f"{self.conf.name}, {self.conf.method.name}, seed {self.conf.seed}"


class Board(Protocol):
    """One place where values go."""

    def log(self, values: Mapping[str, float], step: int, phase: str | None) -> None:
        """Take values of a round, or of an epoch of a phase before the rounds."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Below the run directory; phases stand as a run of their own, since they count epochs."""

    def __init__(self, run: RunFacts) -> None:
        self._folder = run.folder / "tensorboard"
        self._rounds = SummaryWriter(str(self._folder), purge_step=run.after + 1)

    @cached_property
    def _phases(self) -> SummaryWriter:
        return SummaryWriter(str(self._folder / "preparation"))

    def log(self, values: Mapping[str, float], step: int, phase: str | None) -> None:
        """Write scalars."""
        for name, value in values.items():
            (self._phases if phase else self._rounds).add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._rounds.close()
        if "_phases" in vars(self):
            self._phases.close()


class MLflow:
    """Where ``MLFLOW_TRACKING_URI`` says; a run that goes on is the same run there."""

    def __init__(self, run: RunFacts) -> None:
        from mlflow import MlflowClient

        self._client, mark = MlflowClient(), run.folder / "mlflow_run"
        if not mark.exists():
            known = self._client.get_experiment_by_name(PROJECT)
            number = known.experiment_id if known else self._client.create_experiment(PROJECT)
            begun = self._client.create_run(number, run_name=run.title)
            mark.write_text(begun.info.run_id)
            for key, value in flat(asdict(run.conf)).items():
                self._client.log_param(begun.info.run_id, key, value)
        self._id = mark.read_text()

    def log(self, values: Mapping[str, float], step: int, phase: str | None) -> None:
        """Send metrics."""
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        """Say that the run has ended."""
        self._client.set_terminated(self._id)


class WeightsAndBiases:
    """Where ``WANDB_MODE`` and its fellows say."""

    def __init__(self, run: RunFacts) -> None:
        import wandb  # type: ignore[import-not-found]

        given = {"project": PROJECT, "name": run.title, "dir": str(run.folder), "reinit": True}
        self._run = wandb.init(config=flat(asdict(run.conf)), **given)

    def log(self, values: Mapping[str, float], step: int, phase: str | None) -> None:
        """Send values; rounds and epochs of a phase are counted apart."""
        self._run.log({**values, phase or "round": step})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


# Each is made of a run; beside it the extra of this package that brings what it needs.
BOARDS: dict[str, tuple[Callable[[RunFacts], Board], str]] = {
    "tensorboard": (TensorBoard, ""),
    "mlflow": (MLflow, "mlflow"),
    "wandb": (WeightsAndBiases, "wandb"),
}


class Boards:
    """All boards of a run; closed at the end of a with block. Raises ConfError for one missing."""

    def __init__(self, run: RunFacts) -> None:
        self._open: list[Board] = []
        for name in run.conf.runtime.loggers:
            make, extra = BOARDS[name]
            try:
                self._open.append(make(run))
            except ImportError as error:
                cure = f'pip install "{PROJECT}[{extra}]"'
                told = f"runtime.loggers={name}: {error.name} is not installed; {cure}"
                raise ConfError(told) from error

    def log(self, values: Mapping[str, float], step: int, phase: str | None = None) -> None:
        """Give values of a round, or of an epoch of a phase, to all."""
        for board in self._open:
            board.log(values, step, phase)

    def close(self) -> None:
        """Close all, whatever one of them says."""
        with ExitStack() as stack:
            for board in self._open:
                stack.callback(board.close)

    def __enter__(self) -> Boards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return plain values by keys as the command line has them; of none, and nothing, the text."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            is_plain = isinstance(value, int | float | str) and value != ""
            found[f"{prefix}{name}"] = value if is_plain else repr(value)
    return found
