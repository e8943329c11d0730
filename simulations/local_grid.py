"""A federation in this process, without Flower's runtime: for searches, where Ray costs more."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity


class LocalGrid:
    """Answer messages by calling the ClientApp, one after the other; node n is partition n."""

    def __init__(self, app: ClientApp, num_nodes: int) -> None:
        # Flower makes no message outside a run, and offers no public way to name one.
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self._app = app
        self._num_nodes = num_nodes
        self._num_messages = 0

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes."""
        return list(range(1, self._num_nodes + 1))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Return the replies in the order of the messages; no reply is ever late."""
        return [self.answer(message) for message in messages]

    def answer(self, message: Message) -> Message:
        """Return the reply of the node that the message is for."""
        self._num_messages += 1
        message.metadata.__dict__["_message_id"] = f"m{self._num_messages}"
        node = message.metadata.dst_node_id
        place, count = self.partition(node), self._num_nodes
        context = Context(
            1, node, {"partition-id": place, "num-partitions": count}, RecordDict(), {}
        )
        reply = self._app(message, context)
        reply.metadata.__dict__["_src_node_id"] = node
        return reply

    def partition(self, node: int) -> int:
        """Return a node's place among the partitions."""
        return node - 1
