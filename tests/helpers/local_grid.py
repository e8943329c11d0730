"""A grid without Flower's runtime: messages reach a ClientApp in this process, in order."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity


class LocalGrid:
    """Nodes with scrambled ids, as in Flower; ``sent`` keeps every message."""

    def __init__(self, app: ClientApp, num_nodes: int) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self._app = app
        # Partition ids run against the order of node ids, so that a mix-up shows.
        self._partitions = {1000 - 7 * place: place for place in range(num_nodes)}
        self.sent: list[Message] = []
        self.fails: set[int] = set()

    def get_node_ids(self) -> set[int]:
        return set(self._partitions)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        messages = list(messages)
        self.sent += messages
        return [self._answer(message) for message in reversed(messages)]

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        config = {
            "partition-id": self._partitions[node],
            "num-partitions": len(self._partitions),
        }
        context = Context(1, node, config, RecordDict(), {})
        device = message.content.get("config", {}).get("device")
        message.metadata.__dict__["_message_id"] = f"m{len(self.sent)}"
        if device in self.fails:
            reply = Message(Error(1, "ValueError: the device is out of memory"), reply_to=message)
        else:
            reply = self._app(message, context)
        reply.metadata.__dict__["_src_node_id"] = node
        return reply
