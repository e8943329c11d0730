"""Score each round and write down what happened."""

from __future__ import annotations

import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from dccl_flower.codecs import State
from dccl_flower.engine import RoundFacts
from dccl_flower.memory import peak_rss_mb
from dccl_flower.method import Method
from dccl_flower.simulations.app.events import EventWriter
from dccl_flower.simulations.app.results import RoundResult, append_round


class Recorder:
    """Called after each round with its state: writes rounds.csv, events and TensorBoard."""

    def __init__(self, folder: Path, events: EventWriter, method: Method, num_rounds: int) -> None:
        self.rounds: list[RoundResult] = []
        self.final_state: State = {}
        self._worker_peak_mb = 0.0
        self._folder = folder
        self._events = events
        self._method = method
        self._num_rounds = num_rounds
        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._round_started = time.monotonic()

    def __call__(self, number: int, state: State, facts: RoundFacts) -> dict[str, float]:
        """Return the state's scores; round 0 is not written down."""
        scores = dict(self._method.scores(state))
        if number > 0:
            self.final_state = state
            seconds = time.monotonic() - self._round_started
            self._record(RoundResult(number, scores, seconds, facts))
        self._round_started = time.monotonic()
        return scores

    def close(self) -> None:
        """Flush TensorBoard's files."""
        self._board.close()

    def _record(self, result: RoundResult) -> None:
        facts = result.facts
        self._worker_peak_mb = max(self._worker_peak_mb, facts.worker_peak_mb)
        self.rounds.append(result)
        append_round(self._folder / "rounds.csv", result)
        values = {f"test/{name}": value for name, value in result.scores.items()}
        values |= {"wire/bytes_down": facts.bytes_down, "wire/bytes_up": facts.bytes_up}
        if facts.virtual_seconds is not None:
            values["virtual/seconds"] = facts.virtual_seconds
        for name, value in values.items():
            self._board.add_scalar(name, value, result.round)
        score = next(iter(result.scores), "")
        self._events.write("round", total=self._num_rounds, score=score, **result.row())

    def peaks(self) -> dict[str, float]:
        """Return the largest resident sizes in MB, of the server and of any worker."""
        return {"server": peak_rss_mb(), "worker": self._worker_peak_mb}
