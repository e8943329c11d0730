"""Drive any NumPyClient under Flower's Message API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

ClientFn = Callable[[Context], Any]


def numpy_client_app(client_fn: ClientFn, train_mods: Sequence[Any] = ()) -> ClientApp:
    """Return a ClientApp whose messages reach ``fit``, ``evaluate`` and ``get_properties``.

    ``client_fn`` takes a Context and returns a NumPyClient, wrapped by ``to_client()`` or not.
    ``train_mods`` are Flower mods, e.g. for differential privacy; they see one ArrayRecord with
    the keys received and one MetricRecord. A device id in the config is echoed in the metrics,
    since one node may answer for several devices. ``query.node`` tells the node's partition id.
    Head tuning is refused where there are mods, since they do not see its gradients. Metrics must
    be numbers or lists of numbers.
    """
    app = ClientApp()

    @app.train(mods=list(train_mods))
    def train(message: Message, context: Context) -> Message:
        arrays, config = _content(message)
        ndarrays, count, metrics = _numpy_client(client_fn, context).fit(_ndarrays(arrays), config)
        return _train_reply(message, ndarrays, count, metrics)

    @app.train("head")
    def head(message: Message, context: Context) -> Message:
        if train_mods:
            raise ValueError("head tuning sends gradients that the train mods do not see")
        arrays, config = _content(message)
        client = _numpy_client(client_fn, context)
        gradient, count = client.head_gradient(_ndarrays(arrays), config)
        return _train_reply(message, gradient, count, {})

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        arrays, config = _content(message)
        client = _numpy_client(client_fn, context)
        loss, count, metrics = client.evaluate(_ndarrays(arrays), config)
        values = {"loss": float(loss), "num-examples": count, **metrics}
        return _reply(message, {"metrics": _metric_record(values, config)})

    @app.query("node")
    def node(message: Message, context: Context) -> Message:
        keys = ("partition-id", "num-partitions")
        record = MetricRecord()
        for key in keys:
            if key in context.node_config:
                record[key] = int(context.node_config[key])
        return _reply(message, {"metrics": record})

    @app.query("holds")
    def holds(message: Message, context: Context) -> Message:
        (config,) = message.content.config_records.values()
        properties = _numpy_client(client_fn, context).get_properties(dict(config))
        return _reply(message, {"config": ConfigRecord(properties)})

    return app


def _numpy_client(client_fn: ClientFn, context: Context) -> Any:
    client = client_fn(context)
    return getattr(client, "numpy_client", client)


def _content(message: Message) -> tuple[ArrayRecord, dict[str, Any]]:
    (arrays,) = message.content.array_records.values()
    (config,) = message.content.config_records.values()
    return arrays, dict(config)


def _ndarrays(arrays: ArrayRecord) -> list[np.ndarray]:
    return [array.numpy().copy() for array in arrays.values()]


def _train_reply(
    message: Message, ndarrays: list[np.ndarray], count: int, metrics: dict[str, Any]
) -> Message:
    received, config = _content(message)
    # Mods compare keys; arrays of another number are of another kind.
    keys = list(received) if len(received) == len(ndarrays) else map(str, range(len(ndarrays)))
    arrays = ArrayRecord({k: Array(a) for k, a in zip(keys, ndarrays, strict=True)})
    values = {"num-examples": count, **metrics}
    return _reply(message, {"arrays": arrays, "metrics": _metric_record(values, config)})


def _metric_record(values: dict[str, Any], config: dict[str, Any]) -> MetricRecord:
    """Return numbers and lists of them as a MetricRecord; raises TypeError for anything else."""
    for key in ("device", "devices"):
        if key in config:
            values[key] = config[key]
    record = MetricRecord()
    for key, value in values.items():
        if isinstance(value, list):
            record[key] = [_number(key, each) for each in value]
        else:
            record[key] = _number(key, value)
    return record


def _number(key: str, value: Any) -> int | float:
    if not isinstance(value, int | float | np.number):
        raise TypeError(f"metric {key!r} is a {type(value).__name__}; metrics must be numbers")
    return int(value) if isinstance(value, int | np.integer) else float(value)


def _reply(message: Message, records: dict[str, Any]) -> Message:
    return Message(RecordDict(records), reply_to=message)
