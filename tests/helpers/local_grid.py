"""A federation in this process, without Flower's runtime, with the mischief that tests need."""

from __future__ import annotations

from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity


class LocalGrid:
    """Answer messages by calling the ClientApp, one after the other, on nodes with scrambled ids.

    ``sent`` and ``received`` keep every message. What the app raises reaches the caller, or with
    ``reports_errors`` comes back as Flower's own runtime sends it. ``before_answer`` is called with
    each message before its node sees it. What asks a device of ``fails`` to compute fails.
    """

    def __init__(self, app, num_nodes, reports_errors=False):
        # Flower makes no message outside a run, and offers no public way to name one.
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self._app = app
        self._num_messages = 0
        # Partition ids run against the order of node ids, so that a mix-up shows.
        self._partitions = {1000 - 7 * place: place for place in range(num_nodes)}
        self.sent = []
        self.received = []
        self.fails = set()
        self.reports_errors = reports_errors
        self.before_answer = lambda message: None

    def get_node_ids(self):
        return set(self._partitions)

    def partition(self, node):
        return self._partitions[node]

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        self.sent += messages
        replies = [self.answer(message) for message in reversed(messages)]
        self.received += replies
        return replies

    def answer(self, message):
        self._num_messages += 1
        message.metadata.__dict__["_message_id"] = f"m{self._num_messages}"
        self.before_answer(message)
        config = message.content.get("config", {})
        devices = config["devices"] if "devices" in config else [config.get("device")]
        if "arrays" in message.content and self.fails.intersection(devices):
            return _error(message, "ValueError: the device is out of memory")
        try:
            return self._call(message)
        except Exception as error:
            if not self.reports_errors:
                raise
            return _error(message, f"{type(error)}:<'{error}'>")

    def _call(self, message):
        node = message.metadata.dst_node_id
        place = {"partition-id": self.partition(node), "num-partitions": len(self._partitions)}
        reply = self._app(message, Context(1, node, place, RecordDict(), {}))
        reply.metadata.__dict__["_src_node_id"] = node
        return reply


def _error(message, reason):
    reply = Message(Error(1, reason), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
    return reply
