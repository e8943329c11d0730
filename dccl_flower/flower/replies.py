"""What comes back from devices: a copy of the co-submodel, or several merged, and metrics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from flwr.app import MetricRecord, RecordDict

from dccl_flower.codecs import apply_update, decode_exact
from dccl_flower.flower.wire import check_finite, ndarrays, to_arrays, to_state
from dccl_flower.learning.fusion import Copy, State

SAMPLES = "num-examples"
NOT_AVERAGED = ("device", "peak-rss-mb", "class-counts")


@dataclass(frozen=True)
class Reply:
    """The devices that one message speaks for, their copy, and for each its metrics.

    A peak of 0 means that the client does not tell. ``merged_bytes``: what devices that share a
    message would have sent each on its own, in all.
    """

    devices: list[int]
    copy: Copy
    peak_rss_mb: float
    contents: list[RecordDict]
    merged_bytes: int | None = None


def speakers(content: RecordDict) -> list[int]:
    """Return the devices that a reply speaks for."""
    (metrics,) = content.metric_records.values()
    told: Any = metrics["devices"] if "devices" in metrics else [metrics["device"]]
    return [int(device) for device in told]


class Reader:
    """Read replies to a state that was sent by a codec; ``base`` is that state before encoding.

    ``config`` is what its devices are told beside it. Raises ValueError, naming the device, for a
    reply that does not fit.
    """

    def __init__(
        self, base: State, codec: str = "fp32", config: dict[str, Any] | None = None
    ) -> None:
        self.config = config or {}
        self._base = base
        self._codec = codec
        self.sent = to_arrays(base, codec)

    def read(self, content: RecordDict) -> Reply:
        """Return what one message brought."""
        (metrics,) = content.metric_records.values()
        if "devices" in metrics:
            return self._read_merged(content, dict(metrics))
        (device,) = speakers(content)
        (arrays,) = content.array_records.values()
        try:
            state = apply_update(self._codec, ndarrays(arrays), self._base)
        except ValueError as error:
            raise ValueError(f"device {device} replied with what does not fit: {error}") from error
        check_finite(state, f"device {device}")
        copy = _copy(state, metrics[SAMPLES], metrics.get("class-counts"))
        plain = RecordDict({"metrics": _averaged(dict(metrics))})
        return Reply([device], copy, float(metrics.get("peak-rss-mb", 0.0)), [plain])  # type: ignore[arg-type]

    @cached_property
    def _rounded_off(self) -> State:
        """What encoding has taken from the base."""
        received = to_state(self.sent, self._base, self._codec)
        return {name: self._base[name].double() - received[name].double() for name in self._base}

    def _read_merged(self, content: RecordDict, metrics: dict[str, Any]) -> Reply:
        devices = [int(device) for device in metrics.pop("devices")]
        (arrays,) = content.array_records.values()
        try:
            state = decode_exact(ndarrays(arrays), self._base)
        except ValueError as error:
            raise ValueError(f"devices {devices} replied with what does not fit: {error}") from None
        check_finite(state, f"devices {devices}: one")
        if self._codec == "int8":  # which sends changes, to be added to what was not rounded
            state = {name: tensor + self._rounded_off[name] for name, tensor in state.items()}
        copy = _copy(state, metrics.pop(SAMPLES), metrics.pop("class-counts", None))
        peak = max(metrics.pop("peak-rss-mb", [0.0]))
        metrics[SAMPLES] = metrics.pop(f"{SAMPLES}-each")
        contents = []
        for place in range(len(devices)):
            own = {name: values[place] for name, values in metrics.items()}
            contents.append(RecordDict({"metrics": _averaged(own)}))
        # Trained, a state is as large as it was sent.
        return Reply(devices, copy, float(peak), contents, len(devices) * self.sent.count_bytes())


def _copy(state: State, count: Any, classes: Any) -> Copy:
    return Copy(state, int(count), None if classes is None else torch.tensor(classes))


def _averaged(metrics: dict[str, Any]) -> MetricRecord:
    """Return the metrics that may be averaged over devices."""
    return MetricRecord({k: v for k, v in metrics.items() if k not in NOT_AVERAGED})
