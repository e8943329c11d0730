"""Bytes on the wire by kind, counted from the content of the messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

BLOB_KINDS = {
    "mimic": "mimic_down",
    "exemplars": "exemplars_down",
    "correction": "correction_down",
}
KINDS = ("co_down", "co_up", *BLOB_KINDS.values(), "other_down", "other_up")


class Ledger:
    """Running totals, and the totals since the last call of :meth:`close_round`."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        self._at_round_start: Counter[str] = Counter(self.totals)

    def sent(
        self, content: RecordDict, devices: int = 1, lacking: Mapping[str, int] | None = None
    ) -> None:
        """Count a message: co-submodel, blobs, everything else.

        Devices that share a message in a simulation count as if each had its own; ``lacking`` says
        how many of them need each blob.
        """
        self.totals["co_down"] += devices * arrays_bytes(content)
        for record in content.config_records.values():
            blobs = _blob_bytes(record)
            for key, size in blobs.items():
                times = devices if lacking is None else lacking.get(key, devices)
                self.totals[BLOB_KINDS[key]] += times * size
            self.totals["other_down"] += devices * (record.count_bytes() - sum(blobs.values()))

    def received(
        self, content: RecordDict, arrays_kind: str = "co_up", arrays_size: int | None = None
    ) -> None:
        """Count a reply; ``arrays_kind`` says what its arrays are.

        ``arrays_size`` takes the place of their bytes where devices share a message, whose one
        merged copy says nothing of what each of them would have sent.
        """
        size = arrays_bytes(content) if arrays_size is None else arrays_size
        self.totals[arrays_kind] += size
        for metrics in content.metric_records.values():
            self.totals["other_up"] += metrics.count_bytes()
        for config in content.config_records.values():
            self.totals["other_up"] += config.count_bytes()

    def close_round(self) -> tuple[int, int]:
        """Return bytes down and up since the last call."""
        spent = {kind: self.totals[kind] - self._at_round_start[kind] for kind in KINDS}
        self._at_round_start = Counter(self.totals)
        down = sum(n for kind, n in spent.items() if kind.endswith("_down"))
        return down, sum(n for kind, n in spent.items() if kind.endswith("_up"))


def arrays_bytes(content: RecordDict) -> int:
    """Return the bytes of a message's arrays, headers and names included."""
    records: list[ArrayRecord] = list(content.array_records.values())
    return sum(record.count_bytes() for record in records)


def _blob_bytes(record: ConfigRecord) -> dict[str, int]:
    found = {}
    for key in BLOB_KINDS:
        blob = record.get(key)
        if isinstance(blob, bytes):
            found[key] = len(blob)
    return found
