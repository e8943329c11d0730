"""The configuration's sections, keys, types and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dccl_flower.typed_yaml import ConfError, bound, path, section, share

Logger = Literal["tensorboard", "mlflow", "wandb"]
OnFailure = Literal["skip_device", "ask_again", "stop"]


@dataclass
class MethodConf:
    """Which method trains; it decides which other sections there are."""

    name: str = "dc_ccl"


@dataclass
class DataConf:
    """Where the data come from; what lies under a path wins over the name."""

    name: str = ""
    path: str | None = path()


@dataclass
class DevicesConf:
    """The federation: how many devices there are, how many a round, and what they keep where.

    ``profiles`` names tiers, by which a virtual clock runs: of ``over_sampling`` times the cohort
    the first to answer count, within ``deadline`` virtual seconds.
    """

    count: int = bound(10, at_least=1)
    per_round: int | None = None
    store: str | None = path()
    profiles: str | None = path(".yaml", ".yml")
    deadline: float | None = bound(None, above=0)
    over_sampling: float = bound(1.0, at_least=1)


@dataclass
class BareRoundsConf:
    """How many rounds there are, and how many of those asked must answer in how many seconds.

    A device that fails, does not answer in time, or answers with what cannot be right, is left out
    (``skip_device``), asked once more and then left out (``ask_again``), or ends the run
    (``stop``); so does a round with fewer answers than ``min_replies``. ``max_norm`` bounds how far
    a device may move what it was sent (L2).
    """

    count: int = bound(10, at_least=1)
    on_failure: OnFailure = "skip_device"
    min_replies: float = share(1.0)
    timeout: float = bound(3600.0, above=0)
    max_norm: float | None = bound(None, above=0)

    @property
    def steps(self) -> int:
        """How many steps a device trains in all, as far as these say it; else the rounds."""
        return self.count


@dataclass
class WireConf:
    """How models travel: exactly, in 16 or 8 bits, or exactly with an array a tensor."""

    codec: Literal["fp32", "fp16", "int8", "named"] = "fp32"


@dataclass
class PrivacyConf:
    """Differential privacy of devices' updates, by Flower's wrappers and mods.

    ``client_*`` and ``server_*``: updates are clipped on that side to ``clipping_norm``, or from
    there to what half of them keep within, and the server adds noise to their mean. ``local``: each
    device clips its own and adds noise, calibrated to ``epsilon`` and ``delta`` for one round and
    to ``sensitivity``, twice the clipping norm unless it is given. Epsilon is told at ``delta``.
    """

    dp: Literal[
        "none", "client_fixed", "client_adaptive", "server_fixed", "server_adaptive", "local"
    ] = "none"
    clipping_norm: float = bound(1.0, above=0)
    noise_multiplier: float = bound(0.5, at_least=0)
    sensitivity: float | None = bound(None, above=0)
    epsilon: float = bound(1.0, above=0)
    delta: float = bound(1e-5, above=0, below=1)


@dataclass
class RuntimeConf:
    """How the simulation runs; thread counts are part of it because they change float sums.

    ``devices_per_node``: how many devices a message carries at most, trained one after the other.
    ``cache_logits`` computes the control's logits once a device, where nothing augments its images.
    ``resident`` keeps data and modules in the worker process from message to message.
    ``mixed_precision`` (bfloat16) and ``channels_last`` speed up pretraining and distillation.
    ``reuse`` takes cloud submodel and mimic of the same seed and settings from the cache.
    ``keep_last`` checkpoints are kept, from which a run that was stopped goes on; 0 for none.
    ``loggers``: where losses and scores are drawn while it runs.
    """

    nodes: int | None = None
    devices_per_node: int = bound(1, at_least=1)
    workers: int = bound(2, at_least=1)
    threads: int = bound(1, at_least=1)
    server_threads: int = bound(2, at_least=1)
    cache_logits: bool = True
    resident: bool = True
    gpu: bool = False
    mixed_precision: bool = False
    channels_last: bool = False
    reuse: bool = False
    keep_last: int = bound(2, at_least=0)
    loggers: list[Logger] = field(default_factory=lambda: ["tensorboard"])


@dataclass
class ArmsConf:
    """What is compared: ``rows`` of conf/arms or a YAML file, and what an arm or group changes."""

    rows: str = "dc_ccl"
    changes: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Conf:
    """One experiment, as far as it is every method's; what is one method's stands in a subclass."""

    name: str = "unnamed"
    seed: int = bound(0, at_least=0)
    method: MethodConf = section(MethodConf)
    data: DataConf = section(DataConf)
    devices: DevicesConf = section(DevicesConf)
    rounds: BareRoundsConf = section(BareRoundsConf)
    target_gain: float | None = None
    wire: WireConf = section(WireConf)
    privacy: PrivacyConf = section(PrivacyConf)
    runtime: RuntimeConf = section(RuntimeConf)
    arms: ArmsConf = section(ArmsConf)

    def check(self) -> None:
        """Raise ConfError for values that do not go with one another."""
        devices = self.devices
        parts = {"devices.per_round": devices.per_round, "runtime.nodes": self.runtime.nodes}
        for key, value in parts.items():
            if value is not None and not 1 <= value <= devices.count:
                raise ConfError(f"{key}={value}: must lie between 1 and {devices.count} devices")
        for key in ("deadline", "over_sampling"):
            if devices.profiles is None and getattr(devices, key) not in (None, 1):
                raise ConfError(f"devices.{key}={getattr(devices, key)}: needs devices.profiles")
