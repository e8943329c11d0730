"""Cloud submodel and mimic for ``dccl scale``, left in the cache for every measurement.

``python -m dccl_flower.simulations.scale.prepare FOLDER``
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.app.run_folder import CONF_FILE
from dccl_flower.simulations.experiment import open_experiment
from dccl_flower.simulations.jobs import Job, read_description
from dccl_flower.simulations.prepared import prepare


def main(folder: Path) -> None:
    """Pretrain and distil, unless the cache holds both, and write ``result.json``."""
    experiment = open_experiment(load_conf(str(folder / CONF_FILE)))
    torch.set_num_threads(experiment.conf.runtime.server_threads)
    prepare(experiment, experiment.cloud(lambda *_: None))
    Job("", "scale.prepare", folder, read_description(folder)["key"]).finish({})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
