"""Bytes on the wire by kind, counted from the content of the messages."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from dccl_flower.engine import Traffic
from dccl_flower.flower.letters import BESIDE


class Ledger(Traffic):
    """The bytes of messages: each parcel counts under its own name, all else as ``other``."""

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
        self.count(f"{arrays}_down", devices * arrays_bytes(content))
        for record in content.config_records.values():
            parcels = {key: len(each) for key, each in record.items() if isinstance(each, bytes)}
            for key, size in parcels.items():
                name = key.removeprefix(BESIDE).replace("-", "_")
                self.count(f"{name}_down", (lacking or {}).get(key, devices) * size)
            self.count("other_down", devices * (record.count_bytes() - sum(parcels.values())))

    def received(
        self, content: RecordDict, arrays: str = "model", arrays_size: int | None = None
    ) -> None:
        """Count a reply; ``arrays`` says what its arrays are.

        ``arrays_size`` takes the place of their bytes where devices share a message, whose one
        merged copy says nothing of what each of them would have sent.
        """
        size = arrays_bytes(content) if arrays_size is None else arrays_size
        self.count(f"{arrays}_up", size)
        for metrics in content.metric_records.values():
            self.count("other_up", metrics.count_bytes())
        for config in content.config_records.values():
            self.count("other_up", config_bytes(config))


def arrays_bytes(content: RecordDict) -> int:
    """Return the bytes of a message's arrays, headers and names included."""
    records: list[ArrayRecord] = list(content.array_records.values())
    return sum(record.count_bytes() for record in records)


def config_bytes(config: ConfigRecord) -> int:
    """Return bytes as Flower counts them; its own count fails at an empty text or list."""
    filled = {k: v for k, v in config.items() if isinstance(v, int | float) or len(v) > 0}
    return ConfigRecord(filled).count_bytes() + sum(map(len, config.keys() - filled.keys()))
