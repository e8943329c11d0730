"""What cannot be combined with Flower's differential privacy wrappers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from flwr.app import ConfigRecord

from dccl_flower.learning.fusion import State


def refuse_with_privacy(
    config: ConfigRecord,
    received: State,
    returned: State | None,
    options: Sequence[str],
) -> None:
    """Raise ValueError where a wrapper is at work beside ``options`` or batch statistics.

    Gradients and class counts would go unprotected. Clipping must see the very update of one device
    that is sent, and noise what is added to the sum.
    Client-side wrappers announce themselves in the config; server-side ones show by arrays that
    are not those that were last ``returned``.
    """
    changed = returned is not None and any(
        not torch.equal(tensor, received[name]) for name, tensor in returned.items()
    )
    if not changed and "clipping_norm" not in config:
        return
    if options:
        raise ValueError(f"{options[0]}: not with differential privacy, which does not cover it")
    if any(name.endswith("running_var") for name in received):
        raise ValueError("noise breaks batch statistics: use group norm with differential privacy")
