"""Server strategies for Flower, one file an algorithm."""

from dccl_flower.strategies.dc_ccl import DcCcl

__all__ = ["DcCcl"]
