"""Save a run after each round, and bring it back to where it stood."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dccl_flower.codecs import State
from dccl_flower.config import ConfError
from dccl_flower.engine import RoundFacts
from dccl_flower.faults import in_words
from dccl_flower.files import code_digest
from dccl_flower.method import Method, Remembers
from dccl_flower.simulations.app.recorder import Recorder
from dccl_flower.standing import Checkpoints, Standing

NEEDED = {
    "engine": {"run": str, "traffic": dict, "answered": list, "held": list},
    "told": {"recorded": dict, "spent": dict, "code": str},
}
logger = logging.getLogger("dccl_flower")


class Keeper:
    """A recorder whose run can go on: called after each round, it saves what the next one needs.

    ``engine_memory`` gives what the engine keeps; whoever carries the rounds sets it. ``standing``
    is where an earlier attempt of this run stood, if there was one.
    """

    engine_memory: Callable[[], dict[str, Any]]

    def __init__(
        self, checkpoints: Checkpoints, standing: Standing | None, recorder: Recorder
    ) -> None:
        self.standing = standing
        self.recorder = recorder
        self._checkpoints = checkpoints
        self._started = self._rounds_started = time.monotonic()
        self._spent = {"rounds": 0.0, "total": 0.0}
        if standing is not None:
            with _taking_over(standing):
                self._spent = {key: float(standing.told["spent"][key]) for key in self._spent}
                recorder.go_on(standing.told["recorded"], standing.state)

    @property
    def method(self) -> Method:
        """The method that runs."""
        return self.recorder.method

    def prepare(self) -> None:
        """Prepare the method, or take over what an earlier attempt had made and kept."""
        method = self.method
        if isinstance(method, Remembers) and (made := self._checkpoints.prepared()):
            method.adopt(made)
        method.prepare()
        if isinstance(method, Remembers):
            self._checkpoints.save_prepared(method.prepared())
        if self.standing is not None:
            with _taking_over(self.standing):
                check_shapes(self.standing.state, method.initial_state())
                if isinstance(method, Remembers):
                    method.remember(self.standing.memory)
        self._rounds_started = time.monotonic()

    def __call__(self, number: int, state: State, facts: RoundFacts) -> dict[str, float]:
        """Record a round and save where the run stands; what is over already is passed over."""
        if self.standing is not None and number <= self.standing.number:
            return {}
        scores = self.recorder(number, state, facts)
        method = self.method
        memory = method.memory() if isinstance(method, Remembers) else {}
        told = {"recorded": self.recorder.told(), "spent": self.seconds(), "code": code_digest()}
        self._checkpoints.save(Standing(number, state, memory, self.engine_memory(), told))
        return scores

    def bring_store(self, store: Path) -> None:
        """Move what this machine's devices kept to where those of this attempt look for it."""
        old = str(self.standing.engine.get("store", "")) if self.standing is not None else ""
        if old and Path(old).is_dir() and not store.exists():
            store.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(old, store)

    def seconds(self) -> dict[str, float]:
        """Return seconds of wall time, of the rounds and in all; earlier attempts included."""
        now, spent = time.monotonic(), self._spent
        return {
            "rounds": spent["rounds"] + now - self._rounds_started,
            "total": spent["total"] + now - self._started,
        }


def last_standing(checkpoints: Checkpoints) -> Standing | None:
    """Return where a run stood, and tell of it; None where it has to begin anew."""
    standing = checkpoints.last(NEEDED)
    if standing is None:
        logger.warning("no round was complete: the run begins anew")
        return None
    logger.warning("the run goes on after round %d", standing.number)
    if standing.told["code"] != code_digest():
        logger.warning("the code has changed since: the run may end otherwise than it would have")
    return standing


def check_shapes(state: State, like: State) -> None:
    """Raise ValueError where tensors have other names or shapes than those of ``like``."""
    for name in [*like, *state]:
        if name not in state or name not in like:
            raise ValueError(f"{name!r} is in one of them alone")
        if state[name].shape != like[name].shape:
            shapes = tuple(state[name].shape), tuple(like[name].shape)
            raise ValueError(f"{name!r} is {shapes[0]}, expected {shapes[1]}")


@contextmanager
def _taking_over(standing: Standing) -> Iterator[None]:
    """Raise ConfError where a checkpoint does not hold what this run needs."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        where = f"checkpoint of round {standing.number}"
        raise ConfError(f"{where}: does not fit this run: {in_words(error)}") from error
