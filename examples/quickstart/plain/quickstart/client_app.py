"""A device trains what it is sent and sends it back."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from quickstart.task import Net, load_data, train

app = ClientApp()


@app.train()
def train_on_device(message: Message, context: Context) -> Message:
    """Train on this device's images."""
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    device, count = context.node_config["partition-id"], context.run_config["num-devices"]
    loader = load_data(int(device), int(count))
    config = context.run_config
    loss = train(net, loader, int(config["local-epochs"]), float(config["lr"]))
    metrics = MetricRecord({"loss": loss, "num-examples": len(loader.dataset)})
    arrays = ArrayRecord(net.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
