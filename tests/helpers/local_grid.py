"""The package's grid without Flower's runtime, with the mischief that tests need."""

from __future__ import annotations

from flwr.app import Error, Message

from dccl_flower.simulations.local_grid import LocalGrid as PlainLocalGrid


class LocalGrid(PlainLocalGrid):
    """Nodes with scrambled ids, as in Flower; ``sent`` keeps every message."""

    def __init__(self, app, num_nodes):
        super().__init__(app, num_nodes)
        # Partition ids run against the order of node ids, so that a mix-up shows.
        self._partitions = {1000 - 7 * place: place for place in range(num_nodes)}
        self.sent = []
        self.fails = set()

    def get_node_ids(self):
        return set(self._partitions)

    def partition(self, node):
        return self._partitions[node]

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        self.sent += messages
        return [self.answer(message) for message in reversed(messages)]

    def answer(self, message):
        device = message.content.get("config", {}).get("device")
        if device not in self.fails:
            return super().answer(message)
        message.metadata.__dict__["_message_id"] = "failed"
        reply = Message(Error(1, "ValueError: the device is out of memory"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
        return reply
