"""The server: the cloud's models and data, and the strategy."""

import json
import shutil
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from dccl_flower import Cloud
from dccl_flower.image_config import DistilConf, TwoSidedRoundsConf
from dccl_flower.strategies import DcCcl
from own_dc_ccl.task import (
    CLOUD_CLASSES,
    DEVICE_CLASSES,
    cloud_loader,
    perceptron,
    store_folder,
    test_loader,
)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run DC-CCL and, where ``output`` names a file, write the scores to it."""
    torch.manual_seed(0)  # for the first weights; everything later has generators of its own
    num_rounds = int(context.run_config["num-rounds"])
    cloud = Cloud(
        perceptron(256),
        perceptron(32),
        perceptron(32),
        cloud_loader(),
        distil=DistilConf(epochs=60, lr=0.003),
    )
    strategy = DcCcl(
        cloud,
        num_devices=int(context.run_config["num-devices"]),
        rounds=TwoSidedRoundsConf(count=num_rounds, local_steps=40, lr=0.3),
        loss="prior_corrected",
    )

    scorer = cloud.scorer(test_loader(), CLOUD_CLASSES, DEVICE_CLASSES)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        scores, _ = scorer.served(strategy.co_state(arrays))
        return MetricRecord({k.replace("_", "-"): v for k, v in vars(scores).items()})

    result = strategy.start(
        grid, strategy.initial_arrays(), num_rounds=num_rounds, evaluate_fn=evaluate
    )
    scores = {r: dict(m) for r, m in result.evaluate_metrics_serverapp.items()}
    print(json.dumps(scores[num_rounds]))
    if output := str(context.run_config["output"]):
        Path(output).write_text(json.dumps(scores))
    shutil.rmtree(store_folder(context.run_id), ignore_errors=True)
