"""``make deploy-demo``: the same run deployed and simulated, and how far apart they end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.deploy.federation import run_deployed
from dccl_flower.simulations.run.display import Display
from dccl_flower.simulations.run.runner import run_simulation
from dccl_flower.simulations.superlink import RunError, choose_port

NODES = 3
CONF = "digits"
SMALL = [
    *("devices.count=6", "devices.per_round=3", "rounds.count=2", "rounds.local_steps=3"),
    *("pretrain.epochs=2", "distil.epochs=2"),
]
ALLOWED = 1e-6


def run_demo(folder: Path, display: Display) -> float:
    """Run the demonstration in a new folder; return the largest difference between scores.

    Raises RunError where a run fails, or the two asked different devices.
    """
    run_deployed(CONF, SMALL, folder / "deployed", NODES, display)
    display.note("the same, simulated")
    run_simulation(load_conf(CONF, SMALL), folder / "simulated", choose_port(None), display)
    deployed, simulated = (_results(folder / name) for name in ("deployed", "simulated"))
    cohorts = [[row["devices"] for row in each["rounds"]] for each in (deployed, simulated)]
    if cohorts[0] != cohorts[1]:
        raise RunError(f"deployed, the devices were {cohorts[0]}; simulated, {cohorts[1]}")
    return largest_difference(deployed, simulated)


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return how far apart two runs' scores are at most, over their rounds and references.

    Raises RunError where they are not the same scores.
    """
    scores = [_scores(each) for each in (one, other)]
    if scores[0].keys() != scores[1].keys():
        raise RunError("the two runs have not the same scores")
    return max(abs(value - scores[1][name]) for name, value in scores[0].items())


def main(arguments: list[str]) -> None:
    """Run the demonstration and say how it went; every error is one line."""
    folder = Path(arguments[0] if arguments else "runs/deploy-demo").expanduser().resolve()
    try:
        with Display() as display:
            difference = run_demo(folder, display)
    except KeyboardInterrupt:
        sys.exit("deploy-demo: interrupted")
    except (ConfError, RunError) as error:
        sys.exit(f"deploy-demo: {error}")
    print(f"deployed and simulated: the same devices, scores at most {difference:.1e} apart")
    print(f"run directories: {folder}")
    if difference > ALLOWED:
        sys.exit(f"deploy-demo: expected at most {ALLOWED:.0e}")


def _results(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def _scores(results: dict[str, Any]) -> dict[str, float]:
    names = results["final"].keys()
    scores = {f"{row['round']}.{name}": row[name] for row in results["rounds"] for name in names}
    for model, told in results["references"].items():
        scores |= {f"{model}.{name}": value for name, value in told.items()}
    return scores


if __name__ == "__main__":
    main(sys.argv[1:])
