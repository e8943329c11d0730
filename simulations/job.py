"""One job, in a process of its own: ``python -m dccl_flower.simulations.job FOLDER``."""

from __future__ import annotations

import json
import pkgutil
import sys
import traceback
from pathlib import Path

import torch

from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.files import write_json
from dccl_flower.simulations.app.run_folder import CONF_FILE
from dccl_flower.simulations.experiment import open_experiment
from dccl_flower.simulations.jobs import FAILURE, JOB_FILE, RESULT_FILE
from dccl_flower.simulations.run.runner import signals_as_interrupts
from dccl_flower.simulations.superlink import RunError


def main(folder: Path) -> None:
    """Run a folder's job. A failure's last line tells its cause, after a traceback if need be."""
    try:
        with signals_as_interrupts():
            run_job(folder)
    except (ConfError, RunError) as error:  # which say what is wrong and, if any, in which log
        sys.exit(FAILURE + " ".join(str(error).split()))
    except Exception as error:
        traceback.print_exc()
        sys.exit(FAILURE + " ".join(f"{type(error).__name__}: {error}".split()))


def run_job(folder: Path) -> None:
    """Call the function that ``job.json`` names on the experiment of ``conf.yaml``.

    It is given the experiment, the description and the folder; what it returns becomes
    ``result.json``. ``threads`` of the description, else the configuration's, are torch's.
    """
    description = json.loads((folder / JOB_FILE).read_text())
    conf = load_conf(str(folder / CONF_FILE))
    torch.set_num_threads(description.get("threads", conf.runtime.server_threads))
    function = pkgutil.resolve_name(description["function"])
    result = function(open_experiment(conf), description, folder)
    write_json(folder / RESULT_FILE, {"key": description["key"], **result})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
