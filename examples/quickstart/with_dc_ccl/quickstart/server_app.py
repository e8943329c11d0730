"""The server keeps the cloud submodel, and fuses what devices send with what it trains itself."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from torch.utils.data import DataLoader

from dccl_flower import Cloud, DcCcl
from dccl_flower.image_config import PretrainConf, TwoSidedRoundsConf
from quickstart.task import ON_DEVICES, halves, load_test, of_devices

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds and score each."""
    loader = DataLoader(of_devices(False), batch_size=64, shuffle=True)
    cloud_submodel, co = halves()
    start = {"pretrain": PretrainConf(mask_unseen=True), "co_start": "mimic"}
    cloud = Cloud(cloud_submodel, halves()[1], co, loader, **start)
    rounds = int(context.run_config["num-rounds"])
    steps = {"local_steps": 40, "lr": 0.1, "lr_schedule": "cosine", "max_grad_norm": 1.0}
    how = {"rounds": TwoSidedRoundsConf(count=rounds, **steps), "loss": "prior_corrected"}
    strategy = DcCcl(cloud, num_devices=int(context.run_config["num-devices"]), **how)
    scorer = cloud.scorer(load_test(), list(range(8)), ON_DEVICES)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": scorer.served(strategy.co_state(arrays))[0].accuracy})

    strategy.start(grid, strategy.initial_arrays(), num_rounds=rounds, evaluate_fn=evaluate)
