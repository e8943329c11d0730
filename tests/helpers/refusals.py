"""What a user reads of a configuration that is refused."""

from __future__ import annotations

import pytest

from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf


def refusal(*overrides, conf="digits"):
    """Return the one line that refuses a configuration."""
    with pytest.raises(ConfError) as caught:
        load_conf(conf, list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message
