"""What cannot be combined with Flower's differential privacy wrappers."""

from __future__ import annotations

import torch
from flwr.app import ConfigRecord

from dccl_flower.learning.fusion import State


def refuse_with_privacy(
    config: ConfigRecord,
    received: State,
    returned: State | None,
    head_tuning: bool,
    class_counts: bool,
) -> None:
    """Raise ValueError where a wrapper is at work and an option is unprotected or would break.

    Client-side wrappers announce themselves in the config; server-side ones show by arrays that
    are not those that were last ``returned``.
    """
    changed = returned is not None and any(
        not torch.equal(tensor, received[name]) for name, tensor in returned.items()
    )
    if not changed and "clipping_norm" not in config:
        return
    if head_tuning:
        raise ValueError("head tuning sends gradients that differential privacy does not cover")
    if class_counts:
        raise ValueError("class counts of devices are not covered by differential privacy")
    if any(name.endswith("running_var") for name in received):
        raise ValueError("noise breaks batch statistics: use group norm with differential privacy")
