"""DC-CCL as one row of the methods."""

from __future__ import annotations

from typing import Any

from dccl_flower.method import MethodKind
from dccl_flower.strategies.dc_ccl.conf import DcCclConf


def _half(*_: Any) -> Any:
    raise NotImplementedError


DC_CCL = MethodKind(conf=DcCclConf, server=_half, device=_half)
