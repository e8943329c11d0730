"""DC-CCL."""

from .method import DcCcl

__all__ = ["DcCcl"]
