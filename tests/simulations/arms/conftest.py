from __future__ import annotations

import pytest
from built_methods import find_other

from dccl_flower import config_loading


@pytest.fixture
def other_method(monkeypatch):
    """Let configurations know a method that takes a finished run as ``method.backbone``."""
    monkeypatch.setattr(config_loading, "find_method", find_other)
