"""The ``dccl`` command, the Flower app behind it, and what is made of runs: a wing each."""

import os

# A notebook's backend would fail matplotlib's import in an environment that lacks it.
os.environ["MPLBACKEND"] = "agg"
