"""The server's side of ``flwr run``: any method's rounds, carried by Flower."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from dccl_flower.codecs import CODECS
from dccl_flower.config import Conf, ConfError
from dccl_flower.flower.nodes import check_node_count
from dccl_flower.flower.privacy import privately
from dccl_flower.flower.rounds import Rounds
from dccl_flower.method import Method
from dccl_flower.simulations.app.experiment_run import run_experiment
from dccl_flower.simulations.app.keeper import Keeper
from dccl_flower.simulations.app.run_folder import (
    check_resumable,
    claim_folder,
    default_folder,
    run_arguments,
)
from dccl_flower.simulations.experiment import cached_experiment, device_store, policy_of, roster_of

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one experiment; a failure is written to the events file before it is raised."""
    run_config = context.run_config
    experiment = cached_experiment(*run_arguments(run_config))
    conf, resume = experiment.conf, str(run_config.get("resume", ""))
    given = resume or str(run_config["output"]) or default_folder(conf)
    folder = Path(given).expanduser().resolve()
    check = check_resumable if resume else claim_folder
    check(folder)
    print(f"run directory: {folder}", flush=True)
    if resume and conf.privacy.dp.endswith("adaptive"):
        kept = "whose clipping norm no checkpoint holds"
        raise ConfError(f"resume={resume}: not with privacy.dp={conf.privacy.dp}, {kept}")
    check_node_count(len(list(grid.get_node_ids())), conf.devices.count)
    store = device_store(conf, context.run_id, str(run_config.get("store", "")))
    done = False
    try:
        carry = partial(rounds_over_flower, grid, conf, store, experiment.cohort_size)
        run_experiment(experiment, folder, carry, resume=bool(resume))
        done = True
    finally:
        if conf.devices.store is None and (done or not conf.runtime.keep_last):
            shutil.rmtree(store, ignore_errors=True)


def rounds_over_flower(
    grid: Grid, conf: Conf, store: Path, cohort: int, keeper: Keeper
) -> dict[str, int]:
    """Carry the rounds that are left; return the bytes that went over the wire, by kind."""
    strategy = make_strategy(conf, keeper.method)
    if keeper.standing is not None:
        keeper.bring_store(store)
        strategy.go_on(keeper.standing)
    keeper.engine_memory = lambda: {**strategy.memory(), "store": str(store)}

    def after_round(number: int, arrays: ArrayRecord) -> MetricRecord:
        facts = strategy.facts()
        scores = keeper(strategy.done + number, strategy.state(arrays), facts)
        return MetricRecord({name.replace("_", "-"): s for name, s in scores.items()})

    strategy.method.plan(conf.rounds.count)
    privately(strategy, conf.privacy, cohort, conf.seed).start(
        grid,
        strategy.initial_arrays(),
        num_rounds=conf.rounds.count - strategy.done,
        timeout=conf.rounds.timeout,
        evaluate_fn=after_round,
    )
    return dict(strategy.ledger.totals)


def make_strategy(conf: Conf, method: Method) -> Rounds:
    """Return the engine that a configuration describes, with a method in it."""
    strategy = Rounds(
        method,
        roster_of(conf),
        codec=CODECS[conf.wire.codec],
        policy=policy_of(conf),
        devices_per_node=conf.runtime.devices_per_node,
        keep_last=max(1, conf.runtime.keep_last),
    )
    strategy.is_private = conf.privacy.dp != "none"
    return strategy
