"""A method that takes another's finished run, for tests that train nothing."""

from __future__ import annotations

from dataclasses import dataclass

from dccl_flower.config import MethodConf, section
from dccl_flower.image_config import ImageConf
from dccl_flower.method import MethodKind, find_method
from dccl_flower.typed_yaml import path


@dataclass
class OtherMethodConf(MethodConf):
    """A method that starts from what a run has left."""

    name: str = "other"
    backbone: str | None = path()
    depth: int = 1


@dataclass
class OtherConf(ImageConf):
    """A method without sections of its own."""

    method: OtherMethodConf = section(OtherMethodConf)


def find_other(name):
    """Return the method of a name, where ``other`` is the one that is only here."""
    return MethodKind(OtherConf, None, None, None, None) if name == "other" else find_method(name)
