"""Where what a run measures is drawn while it goes on: TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from dccl_flower.config import Conf, ConfError

PROJECT, TRACKING = "dccl-flower", "MLFLOW_TRACKING_URI"

logger = logging.getLogger("dccl_flower")


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

    def close(self, failed: bool) -> None:
        """Write what is left, and how the run ended."""


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

    def close(self, failed: bool) -> None:
        """Write what is left."""
        self._rounds.close()
        if "_phases" in vars(self):
            self._phases.close()


class MLflow:
    """Where ``MLFLOW_TRACKING_URI`` says; a run that goes on is the same run there."""

    def __init__(self, run: RunFacts) -> None:
        from mlflow import MlflowClient

        if not os.environ.get(TRACKING):
            # Its default is a file of the current folder, which Flower removes after a run.
            raise ConfError(f"runtime.loggers=mlflow: needs {TRACKING} in the environment")
        self._client, mark = MlflowClient(), run.folder / "mlflow_run"
        if mark.exists():
            self._id = mark.read_text()
            self._client.update_run(self._id, "RUNNING")
            return
        begun = self._client.create_run(self._experiment(), run_name=run.title)
        self._id = begun.info.run_id
        mark.write_text(self._id)
        for key, value in flat(asdict(run.conf)).items():
            self._client.log_param(self._id, key, value)

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        if known := self._client.get_experiment_by_name(PROJECT):
            return known.experiment_id
        try:
            return self._client.create_experiment(PROJECT)
        except MlflowException:  # another run may have made it meanwhile
            if known := self._client.get_experiment_by_name(PROJECT):
                return known.experiment_id
            raise

    def log(self, values: Mapping[str, float], step: int, phase: str | None) -> None:
        """Send metrics."""
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self, failed: bool) -> None:
        """Say how the run has ended."""
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


class WeightsAndBiases:
    """Where ``WANDB_MODE`` and its fellows say."""

    def __init__(self, run: RunFacts) -> None:
        import wandb  # type: ignore[import-not-found]

        given = {"project": PROJECT, "name": run.title, "dir": str(run.folder), "reinit": True}
        self._run = wandb.init(config=flat(asdict(run.conf)), **given)

    def log(self, values: Mapping[str, float], step: int, phase: str | None) -> None:
        """Send values; rounds and epochs of a phase are counted apart."""
        self._run.log({**values, phase or "round": step})

    def close(self, failed: bool) -> None:
        """Send what is left."""
        self._run.finish(exit_code=int(failed))


# Each is made of a run; beside it the extra of this package that brings what it needs.
BOARDS: dict[str, tuple[Callable[[RunFacts], Board], str]] = {
    "tensorboard": (TensorBoard, ""),
    "mlflow": (MLflow, "mlflow"),
    "wandb": (WeightsAndBiases, "wandb"),
}


class Boards:
    """All boards of a run, closed at the end of a with block; one that fails is left out from then.

    Raises ConfError for one whose package is not installed, or that lacks what it needs.
    """

    def __init__(self, run: RunFacts) -> None:
        self._open: dict[str, Board] = {}
        for name in run.conf.runtime.loggers:
            make, extra = BOARDS[name]
            try:
                self._open[name] = make(run)
            except Exception as error:
                self.close(failed=True)
                if not isinstance(error, ImportError):
                    raise
                cure = f'pip install "{PROJECT}[{extra}]"'
                told = f"runtime.loggers={name}: {error.name} is not installed; {cure}"
                raise ConfError(told) from error

    def log(self, values: Mapping[str, float], step: int, phase: str | None = None) -> None:
        """Give values of a round, or of an epoch of a phase, to all."""
        for name, board in [*self._open.items()]:
            try:
                board.log(values, step, phase)
            except Exception as error:  # a server that is away ends no run of hours
                logger.warning("runtime.loggers: %s is left out from now on (%s)", name, error)
                del self._open[name]

    def close(self, failed: bool = False) -> None:
        """Close all, whatever one of them says."""
        for name, board in self._open.items():
            try:
                board.close(failed)
            except Exception as error:
                logger.warning("runtime.loggers: %s was not closed (%s)", name, error)
        self._open.clear()

    def __enter__(self) -> Boards:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)


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
