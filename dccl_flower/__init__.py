"""DC-CCL (device-cloud collaborative controlled learning) for Flower.

The names below are imported on first use, so that the learning kernels load without Flower.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dccl_flower.flower.numpy_client_app import numpy_client_app
    from dccl_flower.models.split import vertical_split
    from dccl_flower.simulations.trained import load_run
    from dccl_flower.strategies.dc_ccl.cloud import Cloud
    from dccl_flower.strategies.dc_ccl.front import DcCcl, DcCclClient

__version__ = "0.1.0"
__all__ = [
    "Cloud",
    "DcCcl",
    "DcCclClient",
    "__version__",
    "load_run",
    "numpy_client_app",
    "vertical_split",
]

_HOMES = {
    "Cloud": "dccl_flower.strategies.dc_ccl.cloud",
    "DcCcl": "dccl_flower.strategies.dc_ccl.front",
    "DcCclClient": "dccl_flower.strategies.dc_ccl.front",
    "load_run": "dccl_flower.simulations.trained",
    "numpy_client_app": "dccl_flower.flower.numpy_client_app",
    "vertical_split": "dccl_flower.models.split",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
