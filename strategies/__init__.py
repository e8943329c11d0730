"""Server strategies for Flower, one file an algorithm."""

from .dc_ccl import DcCcl

__all__ = ["DcCcl"]
