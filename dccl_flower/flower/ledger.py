"""Bytes on the wire by kind, counted from the content of the messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from dccl_flower.flower.letters import BESIDE


class Ledger:
    """Running totals by kind, and the totals since the last call of :meth:`close_round`.

    A kind is what is sent and its direction, as ``mimic_down``: each parcel counts under its own
    name, and everything else as ``other``.
    """

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self._at_round_start: Counter[str] = Counter()

    def sent(
        self,
        content: RecordDict,
        arrays: str = "model",
        devices: int = 1,
        lacking: Mapping[str, int] | None = None,
    ) -> None:
        """Count a message; ``arrays`` says what its arrays are.

        Devices that share a message in a simulation count as if each had its own; ``lacking`` says
        how many of them need each parcel.
        """
        self._count(f"{arrays}_down", devices * arrays_bytes(content))
        for record in content.config_records.values():
            parcels = _parcel_bytes(record)
            for key, size in parcels.items():
                times = (lacking or {}).get(key, devices)
                self._count(f"{_name(key)}_down", times * size)
            self._count("other_down", devices * (record.count_bytes() - sum(parcels.values())))

    def received(
        self, content: RecordDict, arrays: str = "model", arrays_size: int | None = None
    ) -> None:
        """Count a reply; ``arrays`` says what its arrays are.

        ``arrays_size`` takes the place of their bytes where devices share a message, whose one
        merged copy says nothing of what each of them would have sent.
        """
        size = arrays_bytes(content) if arrays_size is None else arrays_size
        self._count(f"{arrays}_up", size)
        for metrics in content.metric_records.values():
            self._count("other_up", metrics.count_bytes())
        for config in content.config_records.values():
            self._count("other_up", config.count_bytes())

    def close_round(self) -> tuple[int, int]:
        """Return bytes down and up since the last call."""
        spent = self.totals - self._at_round_start
        self._at_round_start = Counter(self.totals)
        down = sum(size for kind, size in spent.items() if kind.endswith("_down"))
        return down, sum(size for kind, size in spent.items() if kind.endswith("_up"))

    def _count(self, kind: str, size: int) -> None:
        if size:
            self.totals[kind] += size


def arrays_bytes(content: RecordDict) -> int:
    """Return the bytes of a message's arrays, headers and names included."""
    records: list[ArrayRecord] = list(content.array_records.values())
    return sum(record.count_bytes() for record in records)


def _parcel_bytes(record: ConfigRecord) -> dict[str, int]:
    return {key: len(value) for key, value in record.items() if isinstance(value, bytes)}


def _name(key: str) -> str:
    return key.removeprefix(BESIDE).replace("-", "_")
