"""The server starts from what it can learn itself, and averages what devices send."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch.utils.data import DataLoader

from quickstart.task import Net, load_test, of_devices, test, train

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds and score each."""
    loader = DataLoader(of_devices(False), batch_size=64, shuffle=True)
    net = Net()
    train(net, loader, epochs=10, lr=0.05)
    rounds = int(context.run_config["num-rounds"])
    strategy = FedAvg(fraction_evaluate=0.0)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        net.load_state_dict(arrays.to_torch_state_dict())
        return MetricRecord({"accuracy": test(net, load_test())})

    strategy.start(grid, ArrayRecord(net.state_dict()), num_rounds=rounds, evaluate_fn=evaluate)
