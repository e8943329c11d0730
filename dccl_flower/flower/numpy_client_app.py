"""Drive any NumPyClient under Flower's Message API."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dccl_flower.faults import BadAnswer, in_words
from dccl_flower.flower.nodes import MODS
from dccl_flower.flower.wire import ndarrays, record
from dccl_flower.time_limit import time_limit

ClientFn = Callable[[Context], Any]
Handler = Callable[[Message, Context], Message]
T = TypeVar("T")

PLACE = ("partition-id", "num-partitions")
HUNG_SECONDS = 30.0  # beyond the time limit, in what cannot be interrupted
METERS = ("arrays_size_mod", "message_size_mod")  # Flower's mods that change nothing


def numpy_client_app(
    client_fn: ClientFn, train_mods: Sequence[Any] | Callable[[Context], Sequence[Any]] = ()
) -> ClientApp:
    """Return a ClientApp whose messages reach ``fit``, ``evaluate`` and ``get_properties``.

    ``client_fn`` takes a Context and returns a NumPyClient, wrapped by ``to_client()`` or not; its
    metrics are numbers or lists of numbers. ``train_mods`` are Flower mods, e.g. for differential
    privacy, or what returns those of a Context; they see one ArrayRecord with the keys received and
    one MetricRecord, and not the later exchanges of a round, ``train.again``, which are refused
    beside them. The config's device id is echoed in the metrics: a node may play several.
    ``query.node`` tells the node's partition id, and how many mods change what it answers. Raises
    ValueError for Flower's secure aggregation, which talks to a workflow of its older strategies.
    """
    mods_of = train_mods if callable(train_mods) else _checked(train_mods)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        turn = _numpy_client(client_fn, context).fit
        return _through(mods_of(context), lambda message, _: _train_reply(message, turn))(
            message, context
        )

    @app.train("again")
    def again(message: Message, context: Context) -> Message:
        if _changing(mods_of(context)):
            raise ValueError("a second exchange in a round: the train mods do not see it")
        return _train_reply(message, _numpy_client(client_fn, context).again)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _evaluate_reply(message, _numpy_client(client_fn, context).evaluate)

    _answer_queries(app, client_fn, mods_of)
    return app


def _answer_queries(
    app: ClientApp, client_fn: ClientFn, mods_of: Callable[[Context], Sequence[Any]]
) -> None:
    @app.query("node")
    def node(message: Message, context: Context) -> Message:
        known: dict[str, Any] = {k: int(n) for k, n in context.node_config.items() if k in PLACE}
        if num_mods := _changing(mods_of(context)):
            known[MODS] = num_mods
        return _reply(message, metrics=MetricRecord(known))

    @app.query("holds")
    def holds(message: Message, context: Context) -> Message:
        (config,) = message.content.config_records.values()
        properties = _numpy_client(client_fn, context).get_properties(dict(config))
        return _reply(message, config=ConfigRecord(properties))


def _checked(mods: Sequence[Any]) -> Callable[[Context], Sequence[Any]]:
    if secure := [name for name in map(_name, mods) if name.startswith("secagg")]:
        raise ValueError(f"{secure[0]}: only the workflow of Flower's older strategies can use it")
    return lambda context: mods


def _name(mod: Any) -> str:
    return getattr(mod, "__name__", "")


def _changing(mods: Sequence[Any]) -> int:
    """Return how many of the mods may change what a node answers."""
    return len([mod for mod in mods if _name(mod) not in METERS])


def _through(mods: Sequence[Any], handler: Handler) -> Handler:
    """Return a handler inside mods, of which the first sees a message first."""
    if not mods:
        return handler
    inner = _through(mods[1:], handler)
    return lambda message, context: mods[0](message, context, inner)


def _numpy_client(client_fn: ClientFn, context: Context) -> Any:
    client = client_fn(context)
    return getattr(client, "numpy_client", client)


def _content(message: Message) -> tuple[ArrayRecord, dict[str, Any]]:
    (arrays,) = message.content.array_records.values()
    (config,) = message.content.config_records.values()
    return arrays, dict(config)


def _train_reply(message: Message, turn: Callable[..., Any]) -> Message:
    received, config = _content(message)
    vectors, count, metrics = _in_time(message, turn)
    # Mods compare keys; arrays of another number are of another kind.
    arrays = record(vectors, list(received) if len(received) == len(vectors) else None)
    values = {"num-examples": count, **metrics}
    return _reply(message, arrays=arrays, metrics=_metric_record(values, config))


def _evaluate_reply(message: Message, score: Callable[..., Any]) -> Message:
    _, config = _content(message)
    loss, count, metrics = _in_time(message, score)
    values = {"loss": float(loss), "num-examples": count, **metrics}
    return _reply(message, metrics=_metric_record(values, config))


def _in_time(message: Message, turn: Callable[[list[np.ndarray], dict[str, Any]], T]) -> T:
    """Return what a client's turn returns, as long as the message lives.

    What it raises tells the server in one line what it is: Flower sends on the text alone.
    """
    arrays, config = _content(message)
    ends_at = message.metadata.created_at + message.metadata.ttl
    try:
        with time_limit(ends_at - time.time(), HUNG_SECONDS):
            return turn(ndarrays(arrays), config)
    except BadAnswer as error:
        raise ValueError(f"{error.kind}: {error}") from error
    except TimeoutError as error:
        raise RuntimeError(f"late: {error}") from error
    except Exception as error:
        if type(error) is ValueError and str(error):
            raise
        raise RuntimeError(in_words(error)) from error


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
