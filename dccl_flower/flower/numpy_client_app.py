"""Drive any NumPyClient under Flower's Message API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dccl_flower.flower.wire import ndarrays, record

ClientFn = Callable[[Context], Any]

PLACE = ("partition-id", "num-partitions")


def numpy_client_app(client_fn: ClientFn, train_mods: Sequence[Any] = ()) -> ClientApp:
    """Return a ClientApp whose messages reach ``fit``, ``evaluate`` and ``get_properties``.

    ``client_fn`` takes a Context and returns a NumPyClient, wrapped by ``to_client()`` or not; its
    metrics are numbers or lists of numbers. ``train_mods`` are Flower mods, e.g. for differential
    privacy; they see one ArrayRecord with the keys received and one MetricRecord, and not the later
    exchanges of a round, ``train.again``, which are refused beside them. The config's device id is
    echoed in the metrics: a node may play several. ``query.node`` tells the node's partition id.
    """
    app = ClientApp()

    @app.train(mods=list(train_mods))
    def train(message: Message, context: Context) -> Message:
        return _train_reply(message, _numpy_client(client_fn, context).fit)

    @app.train("again")
    def again(message: Message, context: Context) -> Message:
        if train_mods:
            raise ValueError("a second exchange in a round: the train mods do not see it")
        return _train_reply(message, _numpy_client(client_fn, context).again)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        arrays, config = _content(message)
        loss, count, metrics = _numpy_client(client_fn, context).evaluate(ndarrays(arrays), config)
        values = {"loss": float(loss), "num-examples": count, **metrics}
        return _reply(message, metrics=_metric_record(values, config))

    @app.query("node")
    def node(message: Message, context: Context) -> Message:
        known: dict[str, Any] = {k: int(n) for k, n in context.node_config.items() if k in PLACE}
        return _reply(message, metrics=MetricRecord(known))

    @app.query("holds")
    def holds(message: Message, context: Context) -> Message:
        (config,) = message.content.config_records.values()
        properties = _numpy_client(client_fn, context).get_properties(dict(config))
        return _reply(message, config=ConfigRecord(properties))

    return app


def _numpy_client(client_fn: ClientFn, context: Context) -> Any:
    client = client_fn(context)
    return getattr(client, "numpy_client", client)


def _content(message: Message) -> tuple[ArrayRecord, dict[str, Any]]:
    (arrays,) = message.content.array_records.values()
    (config,) = message.content.config_records.values()
    return arrays, dict(config)


def _train_reply(message: Message, turn: Callable[..., Any]) -> Message:
    received, config = _content(message)
    vectors, count, metrics = turn(ndarrays(received), config)
    # Mods compare keys; arrays of another number are of another kind.
    arrays = record(vectors, list(received) if len(received) == len(vectors) else None)
    values = {"num-examples": count, **metrics}
    return _reply(message, arrays=arrays, metrics=_metric_record(values, config))


def _metric_record(values: dict[str, Any], config: dict[str, Any]) -> MetricRecord:
    """Return numbers and lists of them as a MetricRecord; raises TypeError for anything else."""
    values |= {key: config[key] for key in ("device", "devices") if key in config}
    record = MetricRecord()
    for key, value in values.items():
        is_list = isinstance(value, list)
        record[key] = [_number(key, v) for v in value] if is_list else _number(key, value)
    return record


def _number(key: str, value: Any) -> int | float:
    if not isinstance(value, int | float | np.number):
        raise TypeError(f"metric {key!r} is a {type(value).__name__}; metrics must be numbers")
    return int(value) if isinstance(value, int | np.integer) else float(value)


def _reply(message: Message, **records: Any) -> Message:
    return Message(RecordDict(records), reply_to=message)
