"""The methods, a room each; ``pyproject.toml`` lists them by name. Flower's fronts load on use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dccl_flower.strategies.dc_ccl.front import DcCcl

__all__ = ["DcCcl"]


def __getattr__(name: str) -> Any:
    if name == "DcCcl":
        from dccl_flower.strategies.dc_ccl.front import DcCcl

        return DcCcl
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
