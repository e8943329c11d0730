"""Messages to a device of DC-CCL, as the strategy's letters would write them."""

from __future__ import annotations

from dccl_flower.codecs import CODECS
from dccl_flower.device import Memory
from dccl_flower.device_store import DeviceStore, sha256
from dccl_flower.learning.controlled import LocalRecipe
from dccl_flower.learning.fusion import Fusion
from dccl_flower.strategies.dc_ccl.device import Score, Train, TuneHead
from dccl_flower.turns import to_config

RUN = "run-of-the-tests"
LATER = (2**31, 0)  # a turn after all others
RECIPE = {"steps": 1, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}
TURN = {
    "loss": "ce",
    "keep_momentum": False,
    "tell_class_counts": False,
    "own_share": 1.0,
    "width": 1.0,
    "fusion": Fusion(head="3"),
}


def train_config(mimic, device=0, codec="fp32", server_round=1, recipe=None, beside=None, **turn):
    """Return the config of a train message that brings the mimic's bytes and tensors beside."""
    given = Train(LocalRecipe(**{**RECIPE, **(recipe or {})}), **{**TURN, **turn})
    config = {**_common(mimic, device, codec, server_round), **to_config(given)}
    return config | {f"beside.{name}": blob for name, blob in (beside or {}).items()}


def head_config(mimic, device=0, codec="fp32"):
    """Return the config of a message that asks for the head's gradient over one batch."""
    common = _common(mimic, device, codec, 1) | {"is-update": False}
    return {**common, **to_config(TuneHead(1, "ce", 0))}


def score_config(mimic, device=0, codec="fp32"):
    """Return the config of an evaluate message."""
    return {**_common(mimic, device, codec, 1), **to_config(Score(1.0))}


def with_exemplars(config, blob):
    """Return a config that brings exemplars too."""
    return {**config, "exemplars": blob, "exemplars-sha256": sha256(blob)}


def encode(codec, state):
    return CODECS[codec].encode(state)


def decode(codec, arrays, like):
    return CODECS[codec].decode(arrays, like)


def kept_by(store, device, name):
    """Return the tensors that a device keeps in the tests' run, or None."""
    return Memory(DeviceStore(store), device, RUN, LATER).kept(name)


def _common(mimic, device, codec, server_round):
    who = {"devices": device} if isinstance(device, list) else {"device": device}
    engine = {"server-round": server_round, "exchange": 0, "keep-last": 1, "seed": 0, "run": RUN}
    engine |= {"codec": codec}
    return {**engine, "is-update": True, **who, "mimic": mimic, "mimic-sha256": sha256(mimic)}
