"""The server's side of ``flwr run``: any method's rounds, carried by Flower."""

from __future__ import annotations

import shutil
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from dccl_flower.codecs import CODECS
from dccl_flower.config import Conf
from dccl_flower.flower.nodes import check_node_count
from dccl_flower.flower.privacy import privately
from dccl_flower.flower.rounds import Rounds
from dccl_flower.method import Method
from dccl_flower.simulations.app.experiment_run import run_experiment
from dccl_flower.simulations.app.recorder import Recorder
from dccl_flower.simulations.app.run_folder import claim_folder, default_folder
from dccl_flower.simulations.experiment import cached_experiment, device_store, policy_of, roster_of

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one experiment; a failure is written to the events file before it is raised."""
    run_config = context.run_config
    experiment = cached_experiment(str(run_config["conf"]), str(run_config["overrides"]))
    conf = experiment.conf
    folder = Path(str(run_config["output"]) or default_folder(conf)).expanduser().resolve()
    claim_folder(folder)
    print(f"run directory: {folder}", flush=True)

    def rounds_over_flower(recorder: Recorder) -> dict[str, int]:
        strategy = make_strategy(conf, recorder.method)

        def after_round(number: int, arrays: ArrayRecord) -> MetricRecord:
            scores = recorder(number, strategy.state(arrays), strategy.facts())
            return MetricRecord({name.replace("_", "-"): s for name, s in scores.items()})

        strategy.method.plan(conf.rounds.count)
        privately(strategy, conf.privacy, experiment.cohort_size, conf.seed).start(
            grid,
            strategy.initial_arrays(),
            num_rounds=conf.rounds.count,
            timeout=conf.rounds.timeout,
            evaluate_fn=after_round,
        )
        return dict(strategy.ledger.totals)

    try:
        check_node_count(len(list(grid.get_node_ids())), conf.devices.count)
        run_experiment(experiment, folder, rounds_over_flower)
    finally:
        if conf.devices.store is None:
            shutil.rmtree(device_store(conf, context.run_id), ignore_errors=True)


def make_strategy(conf: Conf, method: Method) -> Rounds:
    """Return the engine that a configuration describes, with a method in it."""
    strategy = Rounds(
        method,
        roster_of(conf),
        codec=CODECS[conf.wire.codec],
        policy=policy_of(conf),
        devices_per_node=conf.runtime.devices_per_node,
    )
    strategy.is_private = conf.privacy.dp != "none"
    return strategy
