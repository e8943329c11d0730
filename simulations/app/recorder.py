"""Score each round and write down what happened."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from flwr.app import ArrayRecord, MetricRecord
from torch.utils.tensorboard import SummaryWriter

from dccl_flower.learning.evaluate import Scorer
from dccl_flower.learning.fusion import State
from dccl_flower.memory import peak_rss_mb
from dccl_flower.simulations.app.events import EventWriter
from dccl_flower.simulations.app.results import RoundResult, append_round
from dccl_flower.strategies import DcCcl


class Recorder:
    """Flower's ``evaluate_fn``: scores the served model, writes rounds.csv, events, TensorBoard."""

    def __init__(
        self, folder: Path, events: EventWriter, strategy: DcCcl, scorer: Scorer, num_rounds: int
    ) -> None:
        self.rounds: list[RoundResult] = []
        self.final_state: State = {}
        self.worker_peak_mb = 0.0
        self._folder = folder
        self._events = events
        self._strategy = strategy
        self._scorer = scorer
        self._num_rounds = num_rounds
        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._round_started = time.monotonic()

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Score ``arrays``, the co-submodel of record; round 0 is not written down."""
        state = self._strategy.co_state(arrays)
        scores, mimic_co = self._scorer.served(state)
        if server_round > 0:
            self.final_state = state
            self._record(server_round, asdict(scores), scores.accuracy - mimic_co)
        self._round_started = time.monotonic()
        return MetricRecord({"accuracy": scores.accuracy, "accuracy-mimic-co": mimic_co})

    def close(self) -> None:
        """Flush TensorBoard's files."""
        self._board.close()

    def _record(self, server_round: int, scores: dict[str, float], plug_in_gap: float) -> None:
        down, up = self._strategy.ledger.close_round()
        result = RoundResult(
            round=server_round,
            **scores,
            plug_in_gap=plug_in_gap,
            bytes_down=down,
            bytes_up=up,
            seconds=time.monotonic() - self._round_started,
            devices=sorted(d for reply in self._strategy.replies for d in reply.devices),
            virtual_seconds=self._strategy.cohort.virtual_seconds,
            late=list(self._strategy.cohort.late),
            gone=list(self._strategy.cohort.gone),
        )
        for reply in self._strategy.replies:
            self.worker_peak_mb = max(self.worker_peak_mb, reply.peak_rss_mb)
        self.rounds.append(result)
        append_round(self._folder / "rounds.csv", result)
        for name, value in scores.items():
            self._board.add_scalar(f"test/{name}", value, server_round)
        self._board.add_scalar("test/plug_in_gap", plug_in_gap, server_round)
        self._board.add_scalar("wire/bytes_down", down, server_round)
        self._board.add_scalar("wire/bytes_up", up, server_round)
        if result.virtual_seconds is not None:
            self._board.add_scalar("virtual/seconds", result.virtual_seconds, server_round)
        self._events.write("round", total=self._num_rounds, **asdict(result))

    def peaks(self) -> dict[str, float]:
        """Return the largest resident sizes in MB, of the server and of any worker."""
        return {"server": peak_rss_mb(), "worker": self.worker_peak_mb}
